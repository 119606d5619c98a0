"""What describe asks of a model: nothing of it is changed, and what it cannot tell is said in a sentence."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from tiny_models import LONG, random_model
from tomfisher.analysis import attention_sinks, rope_spectrum
from tomfisher.models.families import UnsupportedModel, describe

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
