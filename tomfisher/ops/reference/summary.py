"""Definition of `summary`: a histogram over powers of two, extremes, and counts above thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tomfisher.ops.dispatch import register
from tomfisher.ops.reference.topk import first_non_finite


@register("summary", "reference")
def summary_reference(
    flats: Sequence[Tensor], thresholds: Sequence[float]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """What each vector's entries are like.

    Args:
        flats: at least one vector, all on one device.
        thresholds: no NaN.

    Returns:
        `(extremes, histograms, above, status)`: per vector smallest and largest `[2]` (-0.0 as 0.0; +inf and
        -inf without entries), the numbers of entries between the `histogram_edges` and above each threshold,
        int64; and int64 -1 or the first position of NaN or infinity, where that vector's others mean nothing.
    """
    status = torch.tensor([first_non_finite(flat) for flat in flats], device=flats[0].device)
    return (
        [_extremes(flat) for flat in flats],
        [_histogram(flat) for flat in flats],
        [_above(flat, thresholds) for flat in flats],
        status,
    )


def histogram_edges(dtype: torch.dtype) -> Tensor:
    """Float64 edges of the bins: -inf, 0, the smallest subnormal number, and every power of two that is normal.

    The last is the power above the largest number (inf for float64).
    """
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps
    least, most = (math.frexp(x)[1] for x in (info.smallest_normal, info.max))
    powers = [math.ldexp(1.0, exponent - 1) for exponent in range(least, most + 1)]
    top = 2 * powers[-1]
    return torch.tensor([-math.inf, 0.0, smallest, *powers, top], dtype=torch.float64)


def _extremes(flat: Tensor) -> Tensor:
    if flat.numel() == 0:
        return flat.new_tensor([math.inf, -math.inf])
    return torch.stack(torch.aminmax(flat)) + 0.0


def _histogram(flat: Tensor) -> Tensor:
    edges = histogram_edges(flat.dtype).to(flat.device)
    last = len(edges) - 2
    bins = torch.bucketize(flat.double(), edges, right=True) - 1
    return torch.bincount(bins.clamp_(0, last), minlength=last + 1)  # clamped: NaN and infinity have no bin


def _above(flat: Tensor, thresholds: Sequence[float]) -> Tensor:
    wide = flat.double()
    counts = [(wide > threshold).sum() for threshold in thresholds]
    return torch.stack(counts) if counts else flat.new_empty(0, dtype=torch.int64)
