"""Entries as one vector: what could reach out of bounds is refused once more, and threads write what one would."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from bits import DTYPES, bits, random_bits
from tomfisher.ops import masked_fill_mean_, weight_sums

pytest.importorskip("tomfisher._C")
OPS = ["gather", "put", "fill"]
WRONG_SUM = "add up to the number of positions"


def call(
    op: str, weights: list[Tensor], index: Tensor, counts: list[int], values: Tensor, threads: int = 1
) -> Tensor | None:
    """The registered operation itself; the sums of a fill are those of the weights."""
    run = getattr(torch.ops.tomfisher_cpp, f"{op}_entries")
    if op != "fill":
        return run(weights, index, counts, values, threads)
    return run(weights, index, counts, values, weight_sums(weights, impl="reference"), threads)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"index": torch.tensor([1, 3, 4])}, "Position 4 is outside"),
        ({"index": torch.tensor([5, 3, 0])}, "Position 5 is outside"),
        ({"index": torch.tensor([1, 3, -1])}, "Position -1 is outside"),
        ({"index": torch.tensor([1, 3, 0]).int()}, "int64"),
        ({"index": torch.tensor([1, 9, 3, 9, 0, 9])[::2]}, "int64"),  # not contiguous
        ({"counts": [4, -1]}, WRONG_SUM),
        ({"counts": [-1, 4]}, WRONG_SUM),
        ({"counts": [1, 1]}, WRONG_SUM),
        ({"counts": [2, 2]}, WRONG_SUM),
        ({"counts": [3]}, "one count per weight"),
        ({"values": torch.zeros(2)}, "one value per position"),
        ({"values": torch.zeros(4)}, "one value per position"),
        ({"values": torch.zeros(6)[::2]}, "contiguous"),
        ({"values": torch.zeros(3).half()}, "of the values' dtype"),
        ({"weights": [torch.ones(4), torch.ones(4).half()]}, "of the values' dtype"),
        ({"weights": [torch.ones(4), torch.ones(2, 2).t()]}, "contiguous"),
    ],
    ids=str,
)
def test_what_could_reach_out_of_bounds_is_refused_once_more(op: str, changed: dict, message: str) -> None:
    given = {
        "weights": [torch.ones(4), torch.ones(4)],
        "index": torch.tensor([1, 3, 0]),
        "counts": [2, 1],
        "values": torch.zeros(3),
    }
    call(op, **copy.deepcopy(given))  # these are right
    given |= copy.deepcopy(changed)
    with pytest.raises(RuntimeError, match=message):
        call(op, **given)
    assert all(bool((weight == 1).all()) for weight in given["weights"])
    assert not given["values"].any()


@pytest.mark.parametrize("sums", [torch.zeros(1, 2).double(), torch.zeros(2, 2)], ids=["short", "float32"])
def test_sums_that_are_not_of_these_weights_are_refused(sums: Tensor) -> None:
    weights = [torch.ones(4), torch.ones(4)]
    with pytest.raises(RuntimeError, match="sums must be float64"):
        torch.ops.tomfisher_cpp.fill_entries(weights, torch.tensor([1, 3]), [1, 1], torch.zeros(2), sums, 1)
    assert all(bool((weight == 1).all()) for weight in weights)


COUNTS = [1500, 0, 2000, 1, 1000]  # together more than one thread writes alone


def many(dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Weights of whole numbers, of which sums in any order are exact, and the positions."""
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randint(-8, 9, (40, 100), generator=generator).to(dtype) for _ in COUNTS]
    return weights, torch.cat([torch.randperm(4000, generator=generator)[:count] for count in COUNTS])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_entries_are_those_of_the_reference(dtype: torch.dtype, op: str, threads: int) -> None:
    weights, index = many(dtype)
    expected, parts = [weight.clone() for weight in weights], index.split(COUNTS)
    values = random_bits((sum(COUNTS),), dtype, 1) if op == "put" else weights[0].new_empty(sum(COUNTS))
    old = torch.cat([weight.view(-1)[part] for weight, part in zip(weights, parts, strict=True)])
    if op == "put":
        for weight, part, value in zip(expected, parts, values.split(COUNTS), strict=True):
            bits(weight).view(-1)[part] = bits(value)
    elif op == "fill":
        masked_fill_mean_(expected, parts, impl="reference")
    call(op, weights, index, COUNTS, values, threads)
    assert all(torch.equal(bits(w), bits(e)) for w, e in zip(weights, expected, strict=True))
    if op != "put":
        assert torch.equal(bits(values), bits(old))
