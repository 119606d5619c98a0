"""Definition of `weight_sums`, and the fixed order in which sums are taken."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tomfisher.ops.dispatch import register

_ROW = 1 << 14  # entries that torch adds up, in one order whatever the thread count
_CHUNK = 1 << 18  # entries held in float64 at one time


@register("weight_sums", "reference")
def weight_sums_reference(weights: Sequence[Tensor]) -> Tensor:
    """Sum and sum of absolute values of each tensor; NaN where an entry is not finite."""
    return torch.tensor([_sums(w) for w in weights], dtype=torch.float64, device=weights[0].device)


def _sums(weight: Tensor) -> tuple[float, float]:
    signed: list[float] = []
    absolute: list[float] = []
    for _, chunk in chunks(weight):
        signed += row_sums(chunk)
        absolute += row_sums(chunk.abs_())
    return exact_total(signed), exact_total(absolute)


def chunks(weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Copies in float64 of successive pieces of a tensor, each with its first flat position.

    A non-contiguous weight is copied first.
    """
    flat = weight.detach().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        yield start, flat[start : start + _CHUNK].to(torch.float64, copy=True)


def row_sums(vector: Tensor) -> list[float]:
    """Sums of successive rows of fixed length of a float64 vector; torch adds a row up by cascades."""
    whole = vector.numel() // _ROW * _ROW
    sums = vector[:whole].view(-1, _ROW).sum(1).tolist()
    return [*sums, vector[whole:].sum().item()]


def exact_total(partial: list[float]) -> float:
    """Correctly rounded sum; NaN if a summand is not finite or the sum overflows."""
    try:
        return math.fsum(partial) if all(map(math.isfinite, partial)) else math.nan
    except OverflowError:
        return math.nan
