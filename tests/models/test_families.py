"""What is found in tiny random models of many families is what they compute with."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers as tf

from tomfisher.models.families import UnsupportedModel, describe

SMALL: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = {"vocab_size": 53, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
PLAIN = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
OTHERS = {
    "gptj": lambda: tf.GPTJConfig(**WIDE, rotary_dim=4),
    "codegen": lambda: tf.CodeGenConfig(**WIDE, rotary_dim=4),
    "bigcode": lambda: tf.GPTBigCodeConfig(**WIDE),
    "bloom": lambda: tf.BloomConfig(vocab_size=53, hidden_size=32, n_layer=2, n_head=4),
    "falcon": lambda: tf.FalconConfig(**PLAIN),
    "falcon-grouped": lambda: tf.FalconConfig(**PLAIN, new_decoder_architecture=True, num_kv_heads=2),
    "falcon-alibi": lambda: tf.FalconConfig(**PLAIN, alibi=True, multi_query=False),
    "phi": lambda: tf.PhiConfig(**SMALL),
    "stablelm": lambda: tf.StableLmConfig(**SMALL, qk_layernorm=True),
    "persimmon": lambda: tf.PersimmonConfig(**PLAIN),
    "gemma2": lambda: tf.Gemma2Config(**SMALL, head_dim=8),
    "cohere2": lambda: tf.Cohere2Config(**SMALL),
    "glm4": lambda: tf.Glm4Config(**SMALL, head_dim=8),
    "olmo2": lambda: tf.Olmo2Config(**SMALL),
    "nanochat": lambda: tf.NanoChatConfig(**SMALL),
    "hunyuan": lambda: tf.HunYuanDenseV1Config(**SMALL, head_dim=8),
    "ernie": lambda: tf.Ernie4_5Config(**SMALL, head_dim=8),
    "dbrx": lambda: tf.DbrxConfig(
        vocab_size=53,
        d_model=32,
        n_heads=4,
        n_layers=2,
        attn_config={"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    ),
    "gpt-neo": lambda: tf.GPTNeoConfig(
        vocab_size=53, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
    ),
    "bert": lambda: tf.BertConfig(**PLAIN, is_decoder=True),
    "xglm": lambda: tf.XGLMConfig(
        vocab_size=53, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4, pad_token_id=0
    ),
    "phi3": lambda: tf.Phi3Config(**SMALL),
    "cohere": lambda: tf.CohereConfig(**SMALL),
    "glm": lambda: tf.GlmConfig(**SMALL, head_dim=8),
    "smollm3": lambda: tf.SmolLM3Config(**SMALL),
}
# test name, model type, query heads, kv heads, rotated dimensions of 8, layout, layers with attention
TABLE = [
    ("llama-gqa", "llama", 4, 2, 8, "half", (0, 1)),
    ("qwen2", "qwen2", 4, 2, 8, "half", (0, 1)),
    ("qwen3", "qwen3", 4, 2, 8, "half", (0, 1)),
    ("mistral", "mistral", 4, 2, 8, "half", (0, 1)),
    ("smollm3", "smollm3", 4, 2, 8, "half", (0, 1, 2, 3)),
    ("gemma3", "gemma3_text", 4, 2, 8, "half", (0, 1)),
    ("mixtral", "mixtral", 4, 2, 8, "half", (0, 1)),
    ("qwen2-moe", "qwen2_moe", 4, 2, 8, "half", (0, 1)),
    ("qwen3-moe", "qwen3_moe", 4, 2, 8, "half", (0, 1)),
    ("phi3", "phi3", 4, 2, 8, "half", (0, 1, 2, 3)),
    ("cohere", "cohere", 4, 2, 8, "interleaved", (0, 1, 2, 3)),
    ("glm", "glm", 4, 2, 4, "interleaved", (0, 1, 2, 3)),
    ("gpt-oss", "gpt_oss", 4, 2, 8, "half", (0, 1)),
    ("gptj", "gptj", 4, 4, 4, "interleaved", (0, 1)),
    ("codegen", "codegen", 4, 4, 4, "interleaved", (0, 1)),
    ("bigcode", "gpt_bigcode", 4, 1, 0, None, (0, 1)),
    ("bloom", "bloom", 4, 4, 0, None, (0, 1)),
    ("falcon", "falcon", 4, 1, 8, "half", (0, 1, 2, 3)),
    ("falcon-grouped", "falcon", 4, 2, 8, "half", (0, 1, 2, 3)),
    ("falcon-alibi", "falcon", 4, 4, 0, None, (0, 1, 2, 3)),
    ("phi", "phi", 4, 2, 4, "half", (0, 1, 2, 3)),
    ("stablelm", "stablelm", 4, 2, 2, "half", (0, 1, 2, 3)),
    ("persimmon", "persimmon", 4, 4, 4, "half", (0, 1, 2, 3)),
    ("gemma2", "gemma2", 4, 2, 8, "half", (0, 1, 2, 3)),
    ("cohere2", "cohere2", 4, 2, 8, "interleaved", (0, 1, 2, 3)),
    ("glm4", "glm4", 4, 2, 4, "interleaved", (0, 1, 2, 3)),
    ("olmo2", "olmo2", 4, 2, 8, "half", (0, 1, 2, 3)),
    ("nanochat", "nanochat", 4, 2, 8, "half", (0, 1, 2, 3)),
    ("hunyuan", "hunyuan_v1_dense", 4, 2, 8, "half", (0, 1, 2, 3)),
    ("ernie", "ernie4_5", 4, 2, 8, "interleaved", (0, 1, 2, 3)),
    ("dbrx", "dbrx", 4, 2, 8, "half", (0, 1)),
    ("gpt-neo", "gpt_neo", 4, 4, 0, None, (0, 1)),
    ("bert", "bert", 4, 4, 0, None, (0, 1, 2, 3)),
    ("xglm", "xglm", 4, 4, 0, None, (0, 1)),
    ("gpt-neox", "gpt_neox", 4, 4, 2, "half", (0, 1)),
    ("opt", "opt", 4, 4, 0, None, (0, 1)),
    ("gpt2", "gpt2", 4, 4, 0, None, (0, 1)),
    ("mpt", "mpt", 4, 4, 0, None, (0, 1)),
    ("jamba", "jamba", 4, 2, 0, None, (1,)),
    ("mamba", "mamba", 0, 0, 0, None, ()),
    ("mamba2", "mamba2", 0, 0, 0, None, ()),
]
POSITIONS = {
    **dict.fromkeys(("opt", "gpt2", "bigcode", "gpt-neo", "bert"), "learned"),
    **dict.fromkeys(("mpt", "bloom", "falcon-alibi"), "alibi"),
    **dict.fromkeys(("jamba", "mamba", "mamba2"), "none"),
    "xglm": "sinusoidal",
}
UNROTATED = {"smollm3": (3,), "cohere2": (3,)}


def build(name, tiny_config):
    config = OTHERS[name]() if name in OTHERS else tiny_config(name)
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(config).eval()


def select(weight, projection):
    """The part of a weight that a projection names, as `[heads * head_dim, other axis]`."""
    rows = weight if projection.axis == 0 else weight.T
    return rows[projection.index.flatten()]


@pytest.mark.parametrize(("name", "entry", "heads", "kv_heads", "rotated", "layout", "with_attention"), TABLE)
def test_adapter(tiny_config, name, entry, heads, kv_heads, rotated, layout, with_attention):
    model = build(name, tiny_config)
    found = describe(model)
    weights = dict(model.named_parameters())
    expected = POSITIONS.get(name, "rope")
    assert found.model_type == entry and found.position == expected
    assert tuple(found.attention) == with_attention
    assert [layer.index for layer in found.layers] == list(range(model.config.num_hidden_layers))
    claimed = []
    for layer in found.layers:
        assert all(parameter.startswith(layer.name + ".") for parameter in layer.mlp)
        assert bool(layer.mlp) == (name not in ("mamba", "mamba2"))
        claimed += layer.mlp
        if (attention := layer.attention) is None:
            continue
        assert (attention.heads, attention.kv_heads, attention.head_dim) == (heads, kv_heads, 8)
        for projection, n in zip(
            (attention.q, attention.k, attention.v, attention.o),
            (heads, kv_heads, kv_heads, heads),
            strict=True,
        ):
            weight = weights[projection.parameter]
            assert projection.index.shape == (n, 8)
            assert select(weight, projection).shape == (n * 8, 32)
            claimed.append(projection.parameter)
        whole = {}
        for projection in (attention.q, attention.k, attention.v):
            whole.setdefault(projection.parameter, []).append(projection.index.flatten())
        for parameter, parts in whole.items():  # together they take every output exactly once
            size = weights[parameter].shape[attention.q.axis]
            assert torch.cat(parts).sort().values.equal(torch.arange(size))
        assert (0 if attention.rotary is None else attention.rotary.dim) == (
            0 if layer.index in UNROTATED.get(name, ()) else rotated
        )
        if attention.rotary is not None:
            assert attention.rotary.layout == layout and attention.rotary.attention_factor == 1
    # every matrix of the layers belongs to attention or MLP, except norms and state-space mixers
    rest = {
        n for n, w in weights.items() if w.ndim > 1 and any(n.startswith(x.name + ".") for x in found.layers)
    } - set(claimed)
    assert all(".mixer." in n or ".mamba." in n for n in rest)


@pytest.mark.parametrize(("name", "heads", "kv_heads"), [(row[0], row[2], row[3]) for row in TABLE if row[2]])
def test_projections_are_what_the_attention_uses(tiny_config, name, heads, kv_heads):
    """Zeroing the value rows of one head zeroes exactly that head's inputs of the output projection."""
    model = build(name, tiny_config)
    found = describe(model)
    index, attention = next(iter(found.attention.items()))
    seen = []
    owner = model.get_submodule(attention.o.parameter.rpartition(".")[0])
    handle = owner.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    weight = model.get_parameter(attention.v.parameter)
    bias = getattr(model.get_submodule(attention.v.parameter.rpartition(".")[0]), "bias", None)
    with torch.no_grad():
        (weight if attention.v.axis == 0 else weight.T)[attention.v.index[kv_heads - 1]] = 0
        if bias is not None:
            bias[attention.v.index[kv_heads - 1]] = 0
        model(input_ids=torch.arange(3, 12)[None], use_cache=False)
    handle.remove()
    per_head = seen[0].reshape(-1, heads * 8)[:, attention.o.index].abs().amax((0, 2))
    shared = heads // kv_heads
    assert (per_head[-shared:] == 0).all() and (per_head[:-shared] > 0).all(), index


def scaled(**parameters):
    return tf.LlamaConfig(
        **SMALL,
        max_position_embeddings=128,
        rope_parameters={"rope_theta": 10000.0, **parameters},
    )


def test_llama3_scaling_slows_the_slow_pairs_and_keeps_the_fast():
    config = scaled(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )
    rotary = describe(tf.LlamaForCausalLM(config)).attention[0].rotary
    plain = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    assert rotary.scaling == "llama3" and rotary.base == 10000.0 and rotary.attention_factor == 1
    assert torch.allclose(rotary.frequencies[[0, 3]], plain[[0, 3]] / torch.tensor([1.0, 8.0]))
    assert torch.allclose(rotary.wavelengths, 2 * math.pi / rotary.frequencies)


def test_yarn_scales_cosine_and_sine():
    config = scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
    rotary = describe(tf.LlamaForCausalLM(config)).attention[0].rotary
    assert rotary.scaling == "yarn"
    assert rotary.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


def test_gemma3_layers_have_their_own_base():
    config = tf.Gemma3TextConfig(
        **{**SMALL, "num_hidden_layers": 2},
        head_dim=8,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        },
    )
    attention = describe(tf.Gemma3ForCausalLM(config)).attention
    assert attention[0].rotary.base == 100 and attention[1].rotary.base == 10000
    assert attention[0].rotary.frequencies[0] == 1 and attention[1].rotary.frequencies[0] == 0.5
    assert attention[1].rotary.scaling == "linear"


def test_pairs_of_both_layouts(tiny_config):
    neox = describe(build("gpt-neox", tiny_config)).attention[0].rotary
    llama = describe(build("llama-gqa", tiny_config)).attention[0].rotary
    glm = describe(build("glm", tiny_config)).attention[0].rotary
    assert neox.pairs.tolist() == [[0, 1]]
    assert llama.pairs.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert glm.pairs.tolist() == [[0, 1], [2, 3]]


def test_heads_are_those_that_reach_attention_not_those_of_the_config(tiny_config):
    model = build("llama-gqa", tiny_config)
    model.config.num_attention_heads, model.config.head_dim = 2, 16
    attention = describe(model).attention[0]
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (4, 2, 8)


def test_a_changed_module_is_asked_again_and_a_model_that_no_longer_runs_is_refused(tiny_config):
    model = build("llama-gqa", tiny_config)
    assert describe(model) is describe(model)
    model.model.layers[1].self_attn.k_proj = torch.nn.Linear(32, 24)
    with pytest.raises(UnsupportedModel, match="does not run on a few token ids alone: RuntimeError"):
        describe(model)


def test_bidirectional_attention_is_refused(tiny_config):
    config = tiny_config("gemma3")
    config.use_bidirectional_attention = True
    with pytest.raises(UnsupportedModel, match="not causal"):
        describe(tf.AutoModelForCausalLM.from_config(config))
