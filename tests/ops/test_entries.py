"""Entries as one vector: the same bits as by the lists of `scatter_` and `masked_fill_mean_`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bits import DTYPES, bits, random_bits
from tomfisher.ops import masked_fill_mean_, scatter_, weight_sums
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
