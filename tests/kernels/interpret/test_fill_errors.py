"""What an error on the way of a fill by the kernels leaves behind."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tomfisher.masks import SparseMask
from tomfisher.ops import (
    masked_fill_mean_,
    scatter_,
    square_accumulate_,
    weight_sums,
)
from tomfisher.ops.masked_fill import NonFiniteMeanError
from tomfisher.perturbation import WeightSums, perturb

scatter_kernels = pytest.importorskip("tomfisher.kernels.scatter")
fill_kernels = pytest.importorskip("tomfisher.kernels.masked_fill")


class Failing(TorchDispatchMode):
    """The n-th PyTorch operation inside fails before it did its work."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= 1
        if self.left == -1:
            raise torch.OutOfMemoryError("no memory is left")
        return func(*args, **(kwargs or {}))


class FailingKernel:
    """A kernel whose n-th launch fails."""

    def __init__(self, kernel, n: int) -> None:
        self.kernel = kernel
        self.left = n

    def __getitem__(self, grid):
        self.left -= 1
        if self.left == -1:
            raise RuntimeError("no kernel image")
        return self.kernel[grid]


def case() -> tuple[list[Tensor], list[Tensor]]:
    weights = [
        torch.randn(40),
        torch.randn(6, 5).t(),
        torch.randn(9).double(),
        torch.randn(30).half(),
        torch.randn(5),
    ]
    places = ([39, 2], [7], [0, 5], [3, 1, 29], [])
    return weights, [torch.tensor(place, dtype=torch.int64) for place in places]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def failed_everywhere(run, weights: list[Tensor]) -> int:
    """Let every operation of `run` fail in turn; the number of failures before it came through."""
    before = [weight.clone() for weight in weights]
    for failures in range(1000):
        mode = Failing(failures)
        try:
            with mode:
                run()
        except torch.OutOfMemoryError:
            assert same(weights, before), failures
        else:
            return failures
    raise AssertionError("it never came through")


def test_out_of_memory_anywhere_in_the_list_operations() -> None:
    weights, indices = case()
    before, sums = [weight.clone() for weight in weights], weight_sums(weights, impl="triton")
    undo = [
        torch.zeros(2 * len(index), dtype=w.dtype)[::2] for w, index in zip(weights, indices, strict=True)
    ]
    run = fill_kernels.masked_fill_mean_
    assert failed_everywhere(lambda: run(weights, indices, undo, sums), weights) > 30
    assert not same(weights, before)
    scatter_(weights, indices, undo, impl="triton")
    assert same(weights, before)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_all_tables_are_there_before_the_first_launch(n: int, monkeypatch) -> None:
    weights, indices = case()
    before, real, calls = [weight.clone() for weight in weights], scatter_kernels.tables.build, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == n + 1:
            raise torch.OutOfMemoryError("no memory is left")
        return real(*arguments)

    monkeypatch.setattr(scatter_kernels.tables, "build", failing)
    values = [torch.ones(len(index), dtype=w.dtype) for w, index in zip(weights, indices, strict=True)]
    with pytest.raises(torch.OutOfMemoryError):
        scatter_(weights, indices, values, impl="triton")
    assert same(weights, before)
    calls.clear()
    F = [torch.zeros(5), torch.zeros(6), torch.zeros(7)]
    with pytest.raises(torch.OutOfMemoryError):
        square_accumulate_(F, [torch.ones(5), torch.ones(6).half(), torch.ones(7).double()], impl="triton")
    assert not any(f.any() for f in F)


@pytest.mark.parametrize("launch", [0, 1, 2])
def test_a_launch_that_fails_is_taken_back(launch: int, monkeypatch) -> None:
    weights, indices = case()
    before = [weight.clone() for weight in weights]
    kernel = FailingKernel(scatter_kernels.scatter_kernel, launch)
    monkeypatch.setattr(scatter_kernels, "scatter_kernel", kernel)
    undo = [torch.full((len(index),), 7.0, dtype=w.dtype) for w, index in zip(weights, indices, strict=True)]
    with pytest.raises(RuntimeError, match="no kernel image"):
        masked_fill_mean_(weights, indices, undo, impl="triton")
    assert same(weights, before) and all((old == 7.0).all() for old in undo)


def test_a_perturbation_that_fails_between_two_dtypes_is_taken_back(monkeypatch) -> None:
    tensors = {"a": torch.randn(20), "b": torch.randn(20).half()}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    mask = SparseMask({name: torch.tensor([1, 7]) for name in tensors}, dict.fromkeys(tensors, (20,)))
    perturbation = perturb(tensors, mask, impl="triton")
    kernel = FailingKernel(scatter_kernels.scatter_kernel, 1)
    monkeypatch.setattr(scatter_kernels, "scatter_kernel", kernel)
    with pytest.raises(RuntimeError, match="no kernel image"):
        perturbation.apply()
    assert kernel.left < 0 and not perturbation.applied
    assert all(torch.equal(tensors[n], before[n]) for n in tensors)


def test_sums_that_overflow_are_not_used() -> None:
    weight = torch.tensor([1.7e308, 1.7e308, 1.0], dtype=torch.float64)
    for sums in (None, weight_sums([weight], impl="triton")):
        filled = weight.clone()
        masked_fill_mean_([filled], [torch.tensor([0])], sums=sums, impl="triton")
        assert filled.tolist() == [8.5e307, 1.7e308, 1.0]


def test_a_refused_fill_leaves_the_callers_undo_alone() -> None:
    weights = [torch.arange(4.0), torch.tensor([1.0, math.nan])]
    undo = [torch.full((1,), 7.0), torch.full((1,), 8.0)]
    with pytest.raises(NonFiniteMeanError):
        masked_fill_mean_(weights, [torch.tensor([0])] * 2, undo, impl="triton")
    assert [each.item() for each in undo] == [7.0, 8.0]


def test_a_perturbation_is_applied_again_and_notices_a_model_that_moved() -> None:
    model = torch.nn.Linear(12, 9)
    mask = SparseMask({"weight": torch.tensor([0, 50])}, {"weight": (9, 12)})
    sums = WeightSums()
    perturbation = perturb(model, mask, impl="triton", sums=sums)
    before = model.weight.detach().clone()
    for _ in range(3):
        with perturbation:
            assert not torch.equal(model.weight, before)
        assert torch.equal(model.weight, before)
    model.weight.data = before.clone() * 2
    with perturbation:
        assert (model.weight != before * 2).sum() == 2
    assert torch.equal(model.weight, before * 2)


def test_vectors_in_the_memory_of_a_weight_are_refused() -> None:
    base, two = torch.arange(24.0), [torch.tensor([0, 1])]
    with pytest.raises(ValueError, match="share memory"):
        scatter_([base], two, [base[2:4]], impl="triton")
    with pytest.raises(ValueError, match="share memory"):
        masked_fill_mean_([base], two, [base[2:4]], impl="triton")
    square_accumulate_([base[:12]], [base[12:]], impl="triton")
    assert base[0] == 144.0
