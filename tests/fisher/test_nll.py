"""The likelihood of our own against autograd's cross entropy, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tomfisher.fisher import nll
from tomfisher.fisher.nll import negative_log_likelihood


def inputs(
    rows: int, vocabulary: int, dtype: torch.dtype, scale: float = 5.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + vocabulary)
    logits = (torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64) * scale).to(dtype)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    targets[::3] = -100
    return logits, targets, torch.randn(rows, generator=generator, dtype=torch.float64)


def value_and_gradient(function, logits: Tensor, targets: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = function(leaf, targets)
    value.backward(upstream.to(value.dtype))
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def autograd(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none"
    )


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max()) if exact.numel() else 0.0


@pytest.mark.parametrize("chunk", [1, 50, 1 << 22])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 2), (7, 13), (64, 300), (3, 1), (0, 5)])
def test_values_and_gradients_are_no_further_from_float64_than_autograds(
    monkeypatch: pytest.MonkeyPatch, rows: int, vocabulary: int, dtype: torch.dtype, chunk: int
) -> None:
    monkeypatch.setattr(nll, "CHUNK", chunk)
    logits, targets, upstream = inputs(rows, vocabulary, dtype)
    exact = value_and_gradient(autograd, logits.double(), targets, upstream)
    ours = value_and_gradient(negative_log_likelihood, logits, targets, upstream)
    eager = value_and_gradient(autograd, logits, targets, upstream)
    for found, theirs, truth in zip(ours, eager, exact, strict=True):
        assert found.dtype == theirs.dtype and found.shape == theirs.shape
        slack = (
            4 * torch.finfo(found.dtype).eps * max(1.0, float(truth.abs().max()) if truth.numel() else 1.0)
        )
        assert distance(found, truth) <= distance(theirs, truth) + slack


def test_ignored_rows_count_nothing_even_where_their_logits_are_infinite() -> None:
    logits, targets, upstream = inputs(6, 9, torch.float32)
    logits[0] = torch.inf
    assert targets[0] == -100
    value, _ = value_and_gradient(negative_log_likelihood, logits, targets, upstream)
    assert value[0] == 0 and torch.isfinite(value).all()


def test_large_logits_do_not_overflow() -> None:
    logits, targets, upstream = inputs(8, 11, torch.float32, scale=1e4)
    exact = value_and_gradient(autograd, logits.double(), targets, upstream)
    ours = value_and_gradient(negative_log_likelihood, logits, targets, upstream)
    for found, truth in zip(ours, exact, strict=True):
        torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=1e-6)


def test_a_certain_model_keeps_the_digits_of_its_small_gradients() -> None:
    logits = torch.full((1, 50), 1000.0)
    logits[0, 7] = 1012.0  # p = 1 - 3e-4
    targets, upstream = torch.tensor([7]), torch.ones(1, dtype=torch.float64)
    exact = value_and_gradient(autograd, logits.double(), targets, upstream)[1]
    ours = value_and_gradient(negative_log_likelihood, logits, targets, upstream)[1]
    assert float(((ours.double() - exact) / exact).abs().max()) < 1e-3


def test_logits_written_over_before_the_backward_pass_are_noticed() -> None:
    leaf = torch.randn(4, 5, requires_grad=True)
    logits = leaf * 2
    value = negative_log_likelihood(logits, torch.tensor([0, 1, 2, 3]))
    logits.mul_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()
