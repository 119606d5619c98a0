from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers as tf

from tomfisher.fisher import select_parameters

EXPECTED_KINDS = {
    "llama-gqa": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "gpt-neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "mpt": {"Wqkv", "out_proj", "up_proj", "down_proj"},
    "mamba": {"in_proj", "x_proj", "dt_proj", "out_proj"},
}


@pytest.mark.parametrize("name", EXPECTED_KINDS)
def test_decoder_linear_is_the_weight_matrices_of_the_layers(tiny: SimpleNamespace, name: str) -> None:
    chosen = select_parameters(tiny.model(name), "decoder-linear")
    assert {n.split(".")[-2] for n in chosen} == EXPECTED_KINDS[name]
    assert all(n.endswith(".weight") and p.ndim == 2 for n, p in chosen.items())
    assert not any("head" in n or "embed" in n for n in chosen)


def test_fused_experts_are_decoder_weights_and_convolutions_are_not(tiny: SimpleNamespace) -> None:
    mixtral = select_parameters(tiny.model("mixtral"), "decoder-linear")
    assert sum(p.ndim == 3 for p in mixtral.values()) == 4
    assert not any("conv1d" in n for n in select_parameters(tiny.model("jamba"), "decoder-linear"))


def test_query_and_key_alone_or_refused_where_they_are_fused(tiny: SimpleNamespace) -> None:
    chosen = select_parameters(tiny.model("llama-gqa"), "attention-qk")
    assert {n.split(".")[-2] for n in chosen} == {"q_proj", "k_proj"} and len(chosen) == 4
    with pytest.raises(ValueError, match=r"keeps query, key and value in one matrix.*'\*\.c_attn\.weight'"):
        select_parameters(tiny.model("gpt2"), "attention-qk")


def test_query_and_key_under_unusual_names(tiny: SimpleNamespace) -> None:
    torch.manual_seed(0)
    config = tf.CTRLConfig(vocab_size=53, n_positions=64, n_embd=32, dff=48, n_layer=2, n_head=4)
    chosen = select_parameters(tf.AutoModelForCausalLM.from_config(config).eval(), "attention-qk")
    kinds = [f"transformer.h.{i}.multi_head_attention.W{which}.weight" for i in range(2) for which in "qk"]
    assert list(chosen) == kinds


def test_patterns_and_predicates(tiny: SimpleNamespace) -> None:
    model = tiny.model("llama-gqa")
    assert list(select_parameters(model, "*.1.mlp.up_proj.weight")) == ["model.layers.1.mlp.up_proj.weight"]
    both = select_parameters(model, ["lm_head.*", "*.0.self_attn.q_proj.weight"])
    assert list(both) == ["model.layers.0.self_attn.q_proj.weight", "lm_head.weight"]
    vectors = select_parameters(model, lambda name, p: p.ndim == 1)
    assert vectors and all("norm" in n for n in vectors)
