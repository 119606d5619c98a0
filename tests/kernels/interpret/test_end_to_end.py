"""A whole Fisher diagonal and a perturbation through the kernels, on a tiny model of the common table."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as tf
from torch import nn

import tomfisher

FAMILIES = ["llama-gqa", "gpt2", "mixtral"]  # linear layers, Conv1D, fused experts


def model_of(tiny_config: Callable[..., tf.PretrainedConfig], family: str) -> nn.Module:
    return tf.AutoModelForCausalLM.from_config(tiny_config(family), attn_implementation="eager").eval()


def ragged(lengths: list[int]) -> list[tomfisher.Sample]:
    samples = []
    for length in lengths:
        ids = torch.randint(3, 53, (length,))
        samples.append(tomfisher.Sample(input_ids=ids, labels=ids.clone()))
    return samples


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fisher_diagonal_runs_through_the_kernels_and_equals_the_reference(
    tiny_config, family: str
) -> None:
    model, samples = model_of(tiny_config, family), ragged([11, 3, 7, 2])
    F = {
        impl: tomfisher.fisher_diagonal(model, samples, tokens_per_batch=40, impl=impl, progress=False)
        for impl in ("triton", "reference")
    }
    assert F["triton"].implementations == {"squared_gradient_@cpu": "triton"}
    assert list(F["triton"]) == list(F["reference"]) and set(F["triton"].methods.values()) == {"captured"}
    for name, expected in F["reference"].items():
        # both add up at most 11 products per gradient in float32: a few roundings of the largest entry
        assert (F["triton"][name] - expected).abs().max() <= 32 * 2**-24 * expected.max()


def test_the_fallback_runs_through_the_kernels_too(tiny_config) -> None:
    model, samples = model_of(tiny_config, "llama-tied"), ragged([5, 4])
    F = {
        impl: tomfisher.fisher_diagonal(model, samples, params="*embed*", impl=impl, progress=False)
        for impl in ("triton", "reference")
    }
    assert F["triton"].implementations == {"square_accumulate_@cpu": "triton"}
    (triton,), (reference,) = F["triton"].values(), F["reference"].values()
    assert (triton - reference).abs().max() <= 4 * 2**-24 * reference.max()


@pytest.mark.parametrize("fill", ["mean", "zero", "noise", "scale:1.5"])
def test_a_perturbation_runs_through_the_kernels_and_is_undone_to_the_bit(tiny_config, fill: str) -> None:
    model = model_of(tiny_config, "llama-tied")
    weights = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    mask = tomfisher.top_fraction({name: p.detach().abs() for name, p in weights.items()}, 0.01)
    before = {name: p.detach().clone() for name, p in weights.items()}
    written = {}
    for impl in ("triton", "reference"):
        with tomfisher.perturb(model, mask, fill=fill, impl=impl) as perturbation:
            written[impl] = {name: p.detach().clone() for name, p in weights.items()}
            assert set(perturbation.implementations.values()) == {impl}
        assert all(torch.equal(p, before[name]) for name, p in weights.items())
    for name in weights:
        assert torch.equal(written["triton"][name], written["reference"][name]), name
        assert not torch.equal(written["triton"][name], before[name])
