"""Per-sample gradients of chosen entries against autograd in float64, captured and not."""

from __future__ import annotations

import copy

import pytest
import torch

from tiny_models import random_model
from tomfisher.fisher.entry_gradients import entry_gradients
from training import some_mask, training_samples
from truth import IGNORED


def plain(model, samples, entries):
    """`[N, k]` of every parameter."""
    model = copy.deepcopy(model).double().eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    rows = {name: [] for name in entries}
    for sample in samples:
        model.zero_grad()
        logits = model(input_ids=sample.input_ids[None], use_cache=False).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, sample.labels[1:], ignore_index=IGNORED).backward()
        for name, index in entries.items():
            grad = parameters[name].grad
            rows[name].append(torch.zeros(len(index)).double() if grad is None else grad.flatten()[index])
    return {name: torch.stack(found) for name, found in rows.items()}


def every_kind(model):
    """Some entries of every parameter, vectors and experts too."""
    mask = some_mask(model, 0.03)
    rest = {n: torch.tensor([0, p.numel() - 1]) for n, p in model.named_parameters() if n not in mask}
    return {**mask, **rest}


@pytest.mark.parametrize(
    ("family", "of"),
    [("llama-gqa", some_mask), ("gpt2", some_mask), ("llama-tied", every_kind), ("mixtral", every_kind)],
)
@pytest.mark.parametrize("budget", [24, 512])
def test_gradients_are_those_of_autograd(family, of, budget):
    model, samples = random_model(family, noise=0.05), training_samples()
    entries = dict(of(model))
    expected = plain(model, samples, entries)
    found = {name: torch.full((10, len(index)), torch.nan) for name, index in entries.items()}
    for indices, gradients in entry_gradients(
        model, samples, entries, tokens_per_batch=budget, progress=False
    ):
        for name, values in gradients.items():
            found[name][indices] = values
    largest = max(float(values.abs().max()) for values in expected.values())
    for name, values in expected.items():
        assert (found[name].double() - values).abs().max() <= 1e-5 * values.abs().max() + 1e-7 * largest, name
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("share", [0.004, 0.5])
def test_few_and_many_entries_of_a_matrix_are_the_same_gradients(share):
    model, samples = random_model("llama-gqa", noise=0.05), training_samples()
    entries = {n: i for n, i in some_mask(model, share).items() if "_proj" in n}
    expected = plain(model, samples, entries)
    for indices, gradients in entry_gradients(model, samples, entries, progress=False):
        for name, values in gradients.items():
            torch.testing.assert_close(values.double(), expected[name][indices], rtol=1e-4, atol=1e-7)


def test_linear_maps_of_a_plain_model_go_in_batches():
    model, samples = random_model("llama-gqa"), training_samples()
    mask = some_mask(model)
    linear = {name: index for name, index in mask.items() if "_proj" in name}
    sizes = [len(indices) for indices, _ in entry_gradients(model, samples, linear, progress=False)]
    assert max(sizes) > 1 and sum(sizes) == 10


def test_names_of_another_model_and_no_samples_are_refused():
    model = random_model("llama-gqa")
    with pytest.raises(ValueError, match="has no parameter 'nothing'"):
        list(entry_gradients(model, training_samples(), {"nothing": torch.tensor([0])}))
    with pytest.raises(ValueError, match="samples is empty"):
        list(entry_gradients(model, [], {}))
