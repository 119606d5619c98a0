"""What is found in tiny random models of many families is what they compute with; nothing of them is changed."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as tf

from tiny_models import LONG, config_of, random_model
from tomfisher.analysis import attention_sinks, rope_spectrum
from tomfisher.models.families import UnsupportedModel, describe

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
    ("phi3", "phi3", 4, 2, 8, "half", (0, 1)),
    ("cohere", "cohere", 4, 2, 8, "interleaved", (0, 1)),
    ("glm", "glm", 4, 2, 4, "interleaved", (0, 1)),
    ("gpt-oss", "gpt_oss", 4, 2, 8, "half", (0, 1)),
    ("gptj", "gptj", 4, 4, 4, "interleaved", (0, 1)),
    ("codegen", "codegen", 4, 4, 4, "interleaved", (0, 1)),
    ("bigcode", "gpt_bigcode", 4, 1, 0, None, (0, 1)),
    ("bloom", "bloom", 4, 4, 0, None, (0, 1)),
    ("falcon", "falcon", 4, 1, 8, "half", (0, 1)),
    ("falcon-grouped", "falcon", 4, 2, 8, "half", (0, 1)),
    ("falcon-alibi", "falcon", 4, 4, 0, None, (0, 1)),
    ("phi", "phi", 4, 2, 4, "half", (0, 1)),
    ("stablelm-norm", "stablelm", 4, 2, 2, "half", (0, 1)),
    ("persimmon", "persimmon", 4, 4, 4, "half", (0, 1)),
    ("gemma2", "gemma2", 4, 2, 8, "half", (0, 1)),
    ("cohere2", "cohere2", 4, 2, 8, "interleaved", (0, 1, 2, 3)),
    ("glm4", "glm4", 4, 2, 4, "interleaved", (0, 1)),
    ("olmo2", "olmo2", 4, 2, 8, "half", (0, 1)),
    ("nanochat", "nanochat", 4, 2, 8, "half", (0, 1)),
    ("hunyuan", "hunyuan_v1_dense", 4, 2, 8, "half", (0, 1)),
    ("ernie", "ernie4_5", 4, 2, 8, "interleaved", (0, 1)),
    ("dbrx", "dbrx", 4, 2, 8, "half", (0, 1)),
    ("gpt-neo", "gpt_neo", 4, 4, 0, None, (0, 1)),
    ("bert", "bert", 4, 4, 0, None, (0, 1)),
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


def select(weight, projection):
    """The part of a weight that a projection names, as `[heads * head_dim, other axis]`."""
    rows = weight if projection.axis == 0 else weight.T
    return rows[projection.index.flatten()]


@pytest.mark.parametrize(("name", "entry", "heads", "kv_heads", "rotated", "layout", "with_attention"), TABLE)
def test_adapter(name, entry, heads, kv_heads, rotated, layout, with_attention):
    model = random_model(name)
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
def test_projections_are_what_the_attention_uses(name, heads, kv_heads):
    """Zeroing the value rows of one head zeroes exactly that head's inputs of the output projection."""
    model = random_model(name)
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
    return random_model(config_of("llama", rope_parameters={"rope_theta": 10000.0, **parameters}))


def test_llama3_scaling_slows_the_slow_pairs_and_keeps_the_fast():
    model = scaled(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )
    rotary = describe(model).attention[0].rotary
    plain = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    assert rotary.scaling == "llama3" and rotary.base == 10000.0 and rotary.attention_factor == 1
    assert torch.allclose(rotary.frequencies[[0, 3]], plain[[0, 3]] / torch.tensor([1.0, 8.0]))
    assert torch.allclose(rotary.wavelengths, 2 * math.pi / rotary.frequencies)


def test_yarn_scales_cosine_and_sine():
    model = scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
    rotary = describe(model).attention[0].rotary
    assert rotary.scaling == "yarn"
    assert rotary.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


def test_gemma3_layers_have_their_own_base():
    config = config_of(
        "gemma3",
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        },
    )
    attention = describe(random_model(config)).attention
    assert attention[0].rotary.base == 100 and attention[1].rotary.base == 10000
    assert attention[0].rotary.frequencies[0] == 1 and attention[1].rotary.frequencies[0] == 0.5
    assert attention[1].rotary.scaling == "linear"


def test_pairs_of_both_layouts():
    neox = describe(random_model("gpt-neox")).attention[0].rotary
    llama = describe(random_model("llama-gqa")).attention[0].rotary
    glm = describe(random_model("glm")).attention[0].rotary
    assert neox.pairs.tolist() == [[0, 1]]
    assert llama.pairs.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert glm.pairs.tolist() == [[0, 1], [2, 3]]


def test_heads_are_those_that_reach_attention_not_those_of_the_config():
    model = random_model("llama-gqa")
    model.config.num_attention_heads, model.config.head_dim = 2, 16
    attention = describe(model).attention[0]
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (4, 2, 8)


def test_a_changed_module_is_asked_again_and_a_model_that_no_longer_runs_is_refused():
    model = random_model("llama-gqa")
    assert describe(model) is describe(model)
    model.model.layers[1].self_attn.k_proj = torch.nn.Linear(32, 24)
    with pytest.raises(UnsupportedModel, match="does not run on a few token ids alone: RuntimeError"):
        describe(model)


def test_bidirectional_attention_is_refused():
    with pytest.raises(UnsupportedModel, match="not causal"):
        describe(random_model("both-ways"))


LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
DENSE = {"first_k_dense_replace": 2, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
PROMPTS = [torch.arange(3, 23), torch.arange(30, 50, 2)]


def llama(**options):
    return random_model("llama", 0.3, **options)


def test_the_model_and_the_random_numbers_are_left_as_they_were():
    model = llama().train()
    model.model.embed_tokens.eval()
    flags = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = describe(model)
    assert found.attention[0].rotary is not None
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_any_precision_gives_the_same_structure(dtype, attention):
    plain, other = (describe(model) for model in (llama(), llama(attn_implementation=attention).to(dtype)))
    for layer, found in plain.attention.items():
        same = other.attention[layer]
        assert torch.equal(found.q.index, same.q.index) and torch.equal(found.k.index, same.k.index)
        assert found.rotary.layout == same.rotary.layout and same.lacks == {}
        assert torch.allclose(found.rotary.frequencies, same.rotary.frequencies, rtol=1e-2)


def test_weights_that_change_are_not_asked_about_again_but_settings_are():
    model = llama()
    before = describe(model)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.zero_()
    assert describe(model) is before
    model.set_attn_implementation("sdpa" if model.config._attn_implementation == "eager" else "eager")
    assert describe(model) is not before


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (lambda: tf.DeepseekV2Config(**LONG, **LATENT, **DENSE), "interleaved"),
        (lambda: tf.DeepseekV3Config(**LONG, **LATENT, **DENSE, num_key_value_heads=4), "half"),
        (lambda: tf.MiniCPM3Config(**LONG, **LATENT, num_key_value_heads=4), "half"),
    ],
)
def test_latent_attention_has_frequencies_behind_the_others_and_keys_of_two_weights(config, layout):
    model = random_model(config(), 0.3, attn_implementation="eager")
    found = describe(model).attention[0]
    assert (found.heads, found.kv_heads, found.head_dim) == (4, 4, 12)
    assert (found.rotary.start, found.rotary.dim, found.rotary.layout) == (8, 4, layout)
    assert found.rotary.pairs.tolist() == (
        [[8, 9], [10, 11]] if layout == "interleaved" else [[8, 10], [9, 11]]
    )
    assert found.k is None and "kv_a_proj_with_mqa and model" in found.lacks["k"]
    with pytest.raises(UnsupportedModel, match="keys of layer 0 are made by several weights"):
        found.projection("k")
    assert found.q.parameter.endswith("q_b_proj.weight") and found.v.index.shape == (4, 8)
    spectrum = rope_spectrum(model, PROMPTS)
    assert spectrum.layers[0].q_energy.shape == (4, 2)
    with torch.no_grad():
        maps = model(input_ids=PROMPTS[0][None], output_attentions=True, use_cache=False).attentions
    sinks = attention_sinks(model, PROMPTS[:1])
    for layer, one in zip(sinks.layers, maps, strict=True):
        assert torch.allclose(layer.first_mass, one[0, :, 1:, 0].mean(-1), atol=1e-5)


def test_gemma_4_with_shared_keys_is_seen_whole():
    """Its last layers take keys of earlier ones, and compute one query where a number of logits is asked for."""
    config = tf.Gemma4TextConfig(
        **{**LONG, "num_hidden_layers": 4},
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=8,
        hidden_size_per_layer_input=4,
        vocab_size_per_layer_input=53,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    model = random_model(config, 0.3, attn_implementation="eager")
    attention = describe(model).attention
    assert [a.k.parameter.split(".")[2] for a in attention.values()] == ["0", "1", "0", "1"]
    assert [a.q.parameter.split(".")[2] for a in attention.values()] == ["0", "1", "2", "3"]
    assert all(a.rotary is not None for a in attention.values())
    assert len(attention_sinks(model, PROMPTS).layers) == 4


def xlnet():
    return tf.XLNetConfig(vocab_size=53, d_model=32, n_layer=2, n_head=4, d_inner=48)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (xlnet, r"No softmax of products .* seen in xlnet \(XLNetRelativeAttention\)"),
        (
            lambda: tf.RwkvConfig(
                vocab_size=53, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32
            ),
            "No softmax of products of queries and keys was seen in rwkv",
        ),
        (
            lambda: tf.DiffLlamaConfig(**LONG, num_key_value_heads=2),
            r"layers\.0\.self_attn of this diffllama model computes attention 2 times",
        ),
        (lambda: tf.BertConfig(**LONG), "The attention of this bert model is not causal"),
    ],
)
def test_what_cannot_be_measured_is_said(config, reason):
    model = random_model(config(), 0.3)
    with pytest.raises(UnsupportedModel, match=reason):
        attention_sinks(model, PROMPTS)
    with pytest.raises(UnsupportedModel):
        rope_spectrum(model, PROMPTS)
