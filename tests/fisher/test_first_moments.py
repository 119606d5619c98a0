"""Sums of gradients and norms of inputs against autograd and hooks, one sample at a time in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from tiny_models import random_model
from tomfisher.fisher.first_moments import first_moments
from tomfisher.fisher.selection import select_parameters
from training import training_samples
from truth import IGNORED


def plain(model, samples):
    """Gradient of the sum of all losses, and the root of the sum of squares of every linear input, in float64."""
    model = copy.deepcopy(model).double().eval()
    weights = {module.weight: name for name, module in model.named_modules() if hasattr(module, "weight")}
    squares = {}

    def take(module, args):
        x = args[0].detach().flatten(0, -2)
        squares[f"{weights[module.weight]}.weight"] = squares.get(
            f"{weights[module.weight]}.weight", 0
        ) + x.square().sum(0)

    for module in model.modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            module.register_forward_pre_hook(take)
    model.zero_grad()
    for sample in samples:
        logits = model(input_ids=sample.input_ids[None], use_cache=False).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, sample.labels[1:], ignore_index=IGNORED).backward()
    return {name: p.grad for name, p in model.named_parameters()}, {n: s.sqrt() for n, s in squares.items()}


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "opt"])
def test_sums_of_one_pass_are_those_of_autograd(family):
    model, samples = random_model(family, noise=0.05).eval(), training_samples()
    found = first_moments(model, samples, tokens_per_batch=24, progress=False)
    gradient, norm = plain(model, samples)
    assert list(found.gradient) == list(found.input_norm) == list(select_parameters(model, "decoder-linear"))
    assert found.num_samples == 10
    for name, values in found.gradient.items():
        assert (values.double() - gradient[name]).norm() <= 1e-5 * gradient[name].norm() + 1e-9
        assert values.dtype == torch.float32
        shape = found.input_norm[name].shape
        assert (
            torch.broadcast_shapes(shape, values.shape) == values.shape
            and max(shape) == found.input_norm[name].numel()
        )
        torch.testing.assert_close(
            found.input_norm[name].flatten().double(), norm[name], rtol=1e-5, atol=1e-7
        )
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_only_what_is_asked_for_is_taken():
    model, samples = random_model("llama-gqa").eval(), training_samples()
    gradients = first_moments(model, samples, what=["gradient"], progress=False)
    norms = first_moments(model, samples, what=["input_norm"], progress=False)
    assert gradients.gradient and not gradients.input_norm
    assert norms.input_norm and not norms.gradient


def test_recomputed_layers_do_not_count_twice():
    model, samples = random_model("llama-gqa").eval(), training_samples()[:3]
    before = first_moments(model, samples, progress=False)
    model.gradient_checkpointing_enable()
    after = first_moments(model, samples, progress=False)
    for name in before.input_norm:
        torch.testing.assert_close(after.input_norm[name], before.input_norm[name])
        torch.testing.assert_close(after.gradient[name], before.gradient[name])


@pytest.mark.parametrize(("family", "named"), [("mixtral", "experts"), ("mamba", "dt_proj")])
def test_inputs_that_cannot_be_seen_are_refused_by_name(family, named):
    model, samples = random_model(family).eval(), training_samples()[:2]
    with pytest.raises(ValueError, match=f"{named}.*criterion that needs no activations"):
        first_moments(model, samples, progress=False)
    assert first_moments(model, samples, what=["gradient"], progress=False).gradient


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="samples is empty"):
        first_moments(random_model("llama-gqa"), [], progress=False)
