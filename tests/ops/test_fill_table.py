from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tomfisher.ops import FillTable, MovedWeightError, masked_fill_mean_, scatter_, weight_sums
from tomfisher.ops.dispatch import resolve
from tomfisher.ops.masked_fill import NonFiniteMeanError

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
CPU = torch.device("cpu")
IMPLS = ["reference", *({resolve("masked_fill_mean_", "auto", CPU)[0]} - {"reference"})]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(BITS[tensor.element_size()])


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(bits(a), bits(b)) for a, b in zip(left, right, strict=True))


def case(strided: bool) -> tuple[list[Tensor], list[Tensor]]:
    """All dtypes; odd counts, so that the logs of 16-bit values end between words; an empty mask and tensor."""
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(n, 7, generator=generator).to(t) for t in DTYPES for n in (5, 90)]
    weights += [torch.randn(4, 4, generator=generator), torch.empty(0, 3)]
    if strided:
        weights[1] = weights[1].t()
        weights[5] = weights[5][:, ::2]
    counts = [1, 3, 5, 300, 7, 200, 2, 11, 0, 0]
    indices = [
        torch.randperm(w.numel(), generator=generator)[: min(n, max(w.numel() - 1, 0))]
        for w, n in zip(weights, counts, strict=True)
    ]
    weights[0].view(-1)[indices[0]] = torch.tensor([-3], dtype=torch.int16).view(
        torch.float16
    )  # NaN, payload
    return weights, indices


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_the_bits_of_the_list_operations_time_and_again(impl, strided, known) -> None:
    weights, indices = case(strided)
    before = [weight.clone() for weight in weights]
    copies = [weight.clone() for weight in weights]
    sums = weight_sums(weights)
    old = masked_fill_mean_(copies, indices, sums=sums if known else None, impl=impl)
    table = FillTable(weights, indices, impl)
    assert table.impl == impl and table.fillable and table.packed == (impl == "cpp" and not strided)
    for _ in range(3):
        table.fill_mean(sums if known else None)
        assert table.written and same(weights, copies) and not same(weights, before)
        assert same(table.old, old)
        table.undo()
        assert not table.written and same(weights, before)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("strided", [False, True])
def test_scatter_and_its_undo(impl, strided) -> None:
    weights, indices = case(strided)
    before = [weight.clone() for weight in weights]
    copies = [weight.clone() for weight in weights]
    values = [torch.arange(1, len(i) + 1).to(w.dtype) for w, i in zip(weights, indices, strict=True)]
    scatter_(copies, indices, values, impl="reference")
    table = FillTable(weights, indices, impl)
    for _ in range(2):
        table.scatter(values)
        assert same(weights, copies)
        table.undo()
        assert same(weights, before)


@pytest.mark.parametrize("impl", IMPLS)
def test_indices_are_copied_and_the_caller_may_change_his(impl) -> None:
    weight, index = torch.arange(6.0), torch.tensor([0, 5])
    table = FillTable([weight], [index], impl)
    index.fill_(10**9)
    table.fill_mean()
    assert weight.tolist() == [2.5, 1.0, 2.0, 3.0, 4.0, 2.5]


@pytest.mark.parametrize("impl", IMPLS)
def test_the_order_of_calls_is_watched(impl) -> None:
    weight = torch.arange(4.0)
    table = FillTable([weight], [torch.tensor([3])], impl)
    with pytest.raises(RuntimeError, match="Nothing to undo"):
        table.undo()
    table.fill_mean()
    for again in (table.fill_mean, lambda: table.scatter([torch.ones(1)])):
        with pytest.raises(RuntimeError, match="would be lost"):
            again()
    table.undo()
    assert weight.tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("impl", IMPLS)
def test_writes_are_seen_by_autograd_and_the_version_counter(impl) -> None:
    weight, other = torch.nn.Parameter(torch.randn(3, 3)), torch.randn(4)
    table = FillTable([weight, other], [torch.tensor([4]), torch.tensor([1])], impl)
    loss = weight.square().sum()
    for write in (table.fill_mean, table.undo, lambda: table.scatter([torch.ones(1)] * 2), table.undo):
        versions = weight._version, other._version
        write()
        assert weight._version > versions[0] and other._version > versions[1]
    assert weight.requires_grad and weight.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("impl", IMPLS)
def test_inference_tensors_which_have_no_version(impl) -> None:
    with torch.inference_mode():
        weight = torch.arange(4.0)
        table = FillTable([weight], [torch.tensor([3])], impl)
        table.fill_mean()
        assert weight.tolist() == [0.0, 1.0, 2.0, 1.0]
        table.undo()
    assert weight.tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("impl", IMPLS)
def test_no_finite_mean_names_the_position_and_nothing_is_written(impl) -> None:
    weights = [torch.arange(4.0), torch.tensor([1.0, math.nan])]
    table = FillTable(weights, [torch.tensor([0]), torch.tensor([0])], impl)
    with pytest.raises(NonFiniteMeanError, match=r"weights\[1\]"):
        table.fill_mean()
    assert weights[0].tolist() == [0.0, 1.0, 2.0, 3.0] and not table.written
    weights[1][1] = 7.0
    table.fill_mean()
    assert weights[1].tolist() == [7.0, 7.0] and weights[0].tolist() == [2.0, 1.0, 2.0, 3.0]


def converted(weight: torch.nn.Parameter) -> None:
    weight.data = weight.data.to(torch.float16)


def cut(weight: torch.nn.Parameter) -> None:
    weight.data = weight.data[:2]


def turned(weight: torch.nn.Parameter) -> None:
    weight.data = weight.data.t()


def replaced(weight: torch.nn.Parameter) -> None:
    weight.data = weight.data.clone()


def emptied(weight: torch.nn.Parameter) -> None:
    weight.untyped_storage().resize_(0)


@pytest.mark.parametrize("change", [converted, cut, turned, replaced, emptied])
def test_a_packed_weight_with_other_memory_is_refused(change) -> None:
    pytest.importorskip("tomfisher._C")
    first, weight = torch.arange(16.0), torch.nn.Parameter(torch.arange(16.0).view(4, 4))
    table = FillTable([first, weight], [torch.tensor([2]), torch.tensor([1])], "cpp")
    sums, version = weight_sums([first, weight]), first._version
    change(weight)
    values = [torch.ones(1), torch.ones(1, dtype=weight.dtype)]
    for write in (lambda: table.fill_mean(sums), lambda: table.scatter(values)):
        with pytest.raises(MovedWeightError, match=r"weights\[1\] was moved.*Make a new table") as error:
            write()
        assert error.value.position == 1 and not table.written
    assert first.tolist() == list(range(16)) and first._version == version


def test_undo_of_a_weight_with_other_memory_is_refused_until_it_is_back() -> None:
    pytest.importorskip("tomfisher._C")
    weight = torch.nn.Parameter(torch.arange(4.0))
    table, own = FillTable([weight], [torch.tensor([3])], "cpp"), weight.data
    table.fill_mean()
    weight.data = torch.zeros(4)
    with pytest.raises(MovedWeightError):
        table.undo()
    assert table.written and weight.tolist() == [0.0] * 4
    weight.data = own
    table.undo()
    assert weight.tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("impl", IMPLS)
def test_arguments_are_checked(impl) -> None:
    weight = torch.zeros(4)
    for indices, message in (
        ([torch.tensor([4])], r"indices\[0\] must lie between 0 and 3, got 4"),
        ([torch.tensor([1, 1])], r"indices\[0\] must not repeat"),
        ([], "of one length"),
    ):
        with pytest.raises(ValueError, match=message):
            FillTable([weight], indices, impl)
    table = FillTable([weight], [torch.tensor([1])], impl)
    with pytest.raises(TypeError, match="sums must be float64"):
        table.fill_mean(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"sums must have shape \(1, 2\)"):
        table.fill_mean(torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"values\[0\] must have the index's shape"):
        table.scatter([torch.ones(2)])
    with pytest.raises(TypeError, match=r"values\[0\] must have its weight's dtype"):
        table.scatter([torch.ones(1).double()])
    full = FillTable([weight], [torch.arange(4)], impl)
    assert not full.fillable
    with pytest.raises(ValueError, match="masked entirely"):
        full.fill_mean()
    full.scatter([torch.ones(4)])
    assert weight.tolist() == [1.0] * 4


@pytest.mark.parametrize("impl", IMPLS)
def test_no_weights_at_all(impl) -> None:
    table = FillTable([], [], impl)
    table.fill_mean()
    table.undo()
    table.scatter([])
    assert table.old == []


def test_an_implementation_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="impl must be"):
        FillTable([torch.zeros(2)], [torch.tensor([0])], "fast")  # type: ignore[arg-type]
