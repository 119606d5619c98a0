"""Entries as one vector: the same bits as by the lists of `scatter_` and `masked_fill_mean_`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bits import DTYPES, bits, random_bits
from tomfisher.ops import dispatch, masked_fill_mean_, scatter_, weight_sums
from tomfisher.ops.entries import EntryFunctions, entry_functions
from tomfisher.ops.scatter import gather

pytestmark = pytest.mark.usefixtures("on_cpu")
COUNTS = [3, 0, 4, 1]
INDEX = torch.tensor([11, 0, 4, 2, 9, 1, 7, 5])


def weights_of(dtype: torch.dtype, layout: str) -> list[Tensor]:
    made = [torch.randn(6, 8, generator=torch.Generator().manual_seed(n)).to(dtype) for n in range(4)]
    return [made[0], made[1].view(-1), made[2][:, ::2] if layout == "gaps" else made[2], made[3]]


def functions() -> EntryFunctions:
    return entry_functions("auto", torch.device("cpu"))


@pytest.mark.parametrize("layout", ["contiguous", "gaps"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_and_writes_bit_patterns(dtype: torch.dtype, layout: str) -> None:
    weights, expected = weights_of(dtype, layout), weights_of(dtype, layout)
    values = random_bits((8,), dtype, 0)
    parts = INDEX.split(COUNTS)
    scatter_(expected, parts, values.split(COUNTS), impl="reference")
    functions().put(weights, INDEX, COUNTS, values)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(weights, expected, strict=True))
    assert torch.equal(bits(functions().gather(weights, INDEX, COUNTS)), bits(values))
    assert torch.equal(bits(torch.cat(list(map(gather, weights, parts)))), bits(values))


@pytest.mark.parametrize("layout", ["contiguous", "gaps"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fills_as_the_operation_on_lists(dtype: torch.dtype, layout: str) -> None:
    weights, expected = weights_of(dtype, layout), weights_of(dtype, layout)
    sums, undo = weight_sums(weights, impl="reference"), weights[0].new_empty(8)
    old = masked_fill_mean_(expected, INDEX.split(COUNTS), sums=sums)
    means = functions().fill(weights, INDEX, COUNTS, undo, sums)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(weights, expected, strict=True))
    assert torch.equal(bits(undo), bits(torch.cat(old))) and means[1] == 0.0


def test_a_mean_that_is_not_finite_leaves_all_as_it_was() -> None:
    weights = weights_of(torch.float32, "contiguous")
    weights[3].view(-1)[0] = torch.inf
    before = [weight.clone() for weight in weights]
    means = functions().fill(weights, INDEX, COUNTS, torch.empty(8), weight_sums(weights))
    assert means.isfinite().tolist() == [True, True, True, False]
    assert all(map(torch.equal, weights, before))


def test_an_implementation_of_the_lists_alone_is_what_runs(
    monkeypatch: pytest.MonkeyPatch, on_cpu: str
) -> None:
    """And is what is said to run, though the reference has all that it lacks."""
    for entries in ("gather_entries", "put_entries", "fill_entries"):
        monkeypatch.delitem(dispatch._table, (entries, on_cpu), raising=False)
    ran = []
    for op in ("scatter_", "masked_fill_mean_"):
        function = dispatch.resolve(op, on_cpu, torch.device("cpu"))[1]
        monkeypatch.setitem(
            dispatch._table,
            (op, on_cpu),
            lambda *given, op=op, function=function: (ran.append(op), function(*given))[1],
        )
    weights = weights_of(torch.float32, "contiguous")
    sums, undo = weight_sums(weights, impl="reference"), torch.empty(8)
    before = [weight.clone() for weight in weights]
    gather, put, fill, names = functions()
    fill(weights, INDEX, COUNTS, undo, sums)
    assert not all(map(torch.equal, weights, before))
    put(weights, INDEX, COUNTS, undo)
    assert all(map(torch.equal, weights, before)) and torch.equal(gather(weights, INDEX, COUNTS), undo)
    assert ran == ["masked_fill_mean_", "scatter_"] and set(names.values()) == {on_cpu}
