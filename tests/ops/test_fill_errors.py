"""What an error on the way of a fill leaves behind: nothing, wherever it happens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tomfisher.masks import SparseMask
from tomfisher.ops import masked_fill as reference_module
from tomfisher.ops import masked_fill_mean_, scatter_, square_accumulate_, weight_sums
from tomfisher.ops.dispatch import resolve
from tomfisher.ops.masked_fill import NonFiniteMeanError
from tomfisher.perturbation import perturb

CPU = torch.device("cpu")
IMPLS = ["reference", *({resolve("masked_fill_mean_", "auto", CPU)[0]} - {"reference"})]


class OutOfMemoryAt(TorchDispatchMode):
    """The n-th operation inside fails, before or (if PyTorch's) after it did its work; `left` counts down."""

    def __init__(self, n: int, late: bool) -> None:
        super().__init__()
        self.left = n
        self.late = late

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= 1
        late = self.late and func.namespace == "aten"
        if self.left == -1 and not late:
            raise torch.OutOfMemoryError("no memory is left")
        result = func(*args, **(kwargs or {}))
        if self.left == -1:
            raise torch.OutOfMemoryError("no memory is left")
        return result


def case() -> tuple[list[Tensor], list[Tensor]]:
    """Two dtypes; weights that lie in memory in order, transposed and with gaps."""
    weights = [torch.randn(40), torch.randn(6, 5).t(), torch.randn(9).double(), torch.randn(4, 6)[:, ::2]]
    return weights, [torch.tensor([39, 2]), torch.tensor([7]), torch.tensor([0, 1, 5]), torch.tensor([11, 3])]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_out_of_memory_anywhere_leaves_the_weights_as_they_were(impl, known, late) -> None:
    weights, indices = case()
    before = [weight.clone() for weight in weights]
    sums = weight_sums(weights) if known else None
    run = resolve("masked_fill_mean_", impl, CPU)[1]
    failures = 0
    while True:
        undo = [
            torch.zeros(2 * len(index), dtype=w.dtype)[::2] for w, index in zip(weights, indices, strict=True)
        ]
        mode = OutOfMemoryAt(failures, late)
        try:
            with mode:
                run(weights, indices, undo, sums)
        except torch.OutOfMemoryError:
            assert all(torch.equal(w, was) for w, was in zip(weights, before, strict=True)), failures
            failures += 1
            continue
        break
    assert failures > 8 and mode.left >= 0
    assert not any(torch.equal(w, was) for w, was in zip(weights, before, strict=True))
    scatter_(weights, indices, undo)
    assert all(torch.equal(w, was) for w, was in zip(weights, before, strict=True))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_refused_fill_leaves_the_callers_undo_alone(impl) -> None:
    weights = [torch.arange(4.0), torch.tensor([1.0, math.nan])]
    undo = [torch.full((1,), 7.0), torch.full((1,), 8.0)]
    with pytest.raises(NonFiniteMeanError):
        masked_fill_mean_(weights, [torch.tensor([0])] * 2, undo, impl=impl)
    assert [each.item() for each in undo] == [7.0, 8.0] and weights[0].tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("impl", IMPLS)
def test_a_perturbation_that_fails_between_two_tensors_is_taken_back(impl, monkeypatch) -> None:
    """Strided weights, so that the list operations run, whatever the implementation."""
    tensors = {name: torch.randn(4, 12)[:, ::2] for name in "ab"}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    mask = SparseMask({name: torch.tensor([0, 9]) for name in tensors}, dict.fromkeys(tensors, (4, 6)))
    module, name = reference_module, "scatter_reference"
    if impl == "cpp":
        from tomfisher.ops._backends import cpp as module  # type: ignore[no-redef]

        name = "scatter_"
    real, calls = getattr(module, name), []

    def failing(weights, indices, values) -> None:
        calls.append(len(weights))
        if len(calls) == 1:
            real(weights[:1], indices[:1], values[:1])
            raise torch.OutOfMemoryError("no memory is left")
        real(weights, indices, values)

    monkeypatch.setattr(module, name, failing)
    perturbation = perturb(tensors, mask, impl=impl)
    with pytest.raises(torch.OutOfMemoryError):
        perturbation.apply()
    assert calls == [2, 2] and not perturbation.applied
    assert all(torch.equal(tensors[n], before[n]) for n in tensors)
    with perturbation:
        assert not torch.equal(tensors["a"], before["a"])
    assert all(torch.equal(tensors[n], before[n]) for n in tensors)


@pytest.mark.parametrize("impl", IMPLS)
def test_sums_that_overflow_are_not_used(impl) -> None:
    def weight() -> Tensor:
        return torch.tensor([1.7e308, 1.7e308, 1.0], dtype=torch.float64)

    one = [torch.tensor([0])]
    for sums in (None, weight_sums([weight()], impl=impl)):
        filled, opposite = weight(), weight() * torch.tensor([1.0, -1.0, 1.0])
        masked_fill_mean_([filled], one, sums=sums, impl=impl)
        assert filled.tolist() == [8.5e307, 1.7e308, 1.0]
        masked_fill_mean_([opposite], one, sums=sums, impl=impl)
        assert opposite[0] == -8.5e307


@pytest.mark.parametrize("impl", IMPLS)
def test_a_mean_whose_sum_overflows_is_refused(impl) -> None:
    weight = torch.full((3 << 14,), 1.7e308, dtype=torch.float64)
    with pytest.raises(NonFiniteMeanError):
        masked_fill_mean_([weight], [torch.tensor([0])], impl=impl)
    assert bool((weight == 1.7e308).all())


@pytest.mark.parametrize("impl", IMPLS)
def test_vectors_in_the_memory_of_a_weight_are_refused(impl) -> None:
    base, other, spare = torch.arange(24.0), torch.arange(8.0), torch.zeros(4)
    before, two = base.clone(), [torch.tensor([0, 1])] * 2
    strided = base.view(4, 6)[:, ::2]
    for weights, vectors in [
        ([base, other], [base[2:4], spare[:2]]),
        ([other, base], [base[23:].expand(2), base[:2]]),
        ([strided, other], [base[6:8], spare[:2]]),
        ([strided.t(), other], [spare[:2], base[::9][1:3]]),
    ]:
        with pytest.raises(ValueError, match="share memory"):
            scatter_(weights, two, vectors, impl=impl)
        with pytest.raises(ValueError, match="share memory"):
            masked_fill_mean_(weights, two, vectors, impl=impl)
    with pytest.raises(ValueError, match=r"undo\[0\] and undo\[1\] share memory"):
        masked_fill_mean_([base, other], two, [spare[:2], spare[1:3]], impl=impl)
    assert torch.equal(base, before) and other.tolist() == list(range(8))
    # neighbours, the same values for two weights, and weights that share memory but no entry
    scatter_([base[:4], base[2:8]], two, [base[8:10], base[8:10]], impl=impl)
    assert base[:4].tolist() == [8.0, 9.0, 8.0, 9.0]
    masked_fill_mean_([base[:4], base[4:12]], two, [spare[:2], spare[2:]], impl=impl)
    assert spare.tolist() == [8.0, 9.0, 4.0, 5.0]


def test_fake_tensors_have_neither_values_nor_addresses_to_look_at() -> None:
    with torch._subclasses.FakeTensorMode():
        weights = [torch.empty(4, 3), torch.empty(7)]
        indices = [torch.empty(2, dtype=torch.int64), torch.empty(0, dtype=torch.int64)]
        undo = masked_fill_mean_(weights, indices)
        assert [old.shape for old in undo] == [(2,), (0,)]
        scatter_(weights, indices, undo)
        square_accumulate_(weights, [torch.empty(4, 3), torch.empty(7)])
        with pytest.raises(ValueError, match="one length"):
            scatter_(weights, indices[:1], undo)


def test_a_compiled_fill_is_that_of_eager_mode_and_refuses_the_same() -> None:
    def step(weight: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        (old,) = masked_fill_mean_([weight], [index])
        F = torch.zeros(4)
        square_accumulate_([F], [weight])
        scatter_([weight], [index], [old * 2])
        return old, F

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    index, results = torch.tensor([3]), []
    for run in (step, compiled):
        weight = torch.arange(4.0)
        results.append([*run(weight, index), weight])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert results[0][1].tolist() == [0.0, 1.0, 4.0, 1.0] and results[0][2][3] == 6.0
    for bad, position, message in (
        (torch.tensor([0.0, math.nan, 1.0, 2.0]), index, "holds NaN"),
        (torch.arange(4.0), torch.tensor([4]), "between 0 and 3, got 4"),
    ):
        with pytest.raises(ValueError, match=message):
            compiled(bad, position)
        assert bad[3] in (2.0, 3.0)
