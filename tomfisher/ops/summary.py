"""`summary`: extremes, a histogram over powers of two, and how many entries are above x."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

from tomfisher.ops.dispatch import Impl, resolve
from tomfisher.ops.reference.summary import histogram_edges
from tomfisher.ops.vectors import check_finite, labels_of, vectors_of


class Summary(NamedTuple):
    """What the entries of one tensor are like.

    Attributes:
        min: 0-dimensional, the tensor's dtype: the smallest entry, -0.0 as 0.0 (+inf without entries).
        max: as `min`, the largest (-inf without entries).
        histogram: int64: entry i counts what lies in `[edges[i], edges[i + 1])`.
        edges: float64, one more than `histogram`, by dtype alone: -inf, 0, the smallest subnormal number, and
            every power of two from the smallest normal number to above the largest. So there is one bin for
            negative numbers, one for zeros, one for subnormal numbers, and one for each exponent.
        above: int64, the number of entries larger than each threshold.
    """

    min: Tensor
    max: Tensor
    histogram: Tensor
    edges: Tensor
    above: Tensor


@overload
def summary(values: Tensor, thresholds: Sequence[float] = (), impl: Impl = "auto") -> Summary: ...


@overload
def summary(
    values: Sequence[Tensor], thresholds: Sequence[float] = (), impl: Impl = "auto"
) -> list[Summary]: ...


def summary(
    values: Tensor | Sequence[Tensor], thresholds: Sequence[float] = (), impl: Impl = "auto"
) -> Summary | list[Summary]:
    """Count entries by size, exactly; the C++ implementation reads each tensor once.

    Equivalent PyTorch::

        flat = values.flatten().double()
        above = [(flat > x).sum() for x in thresholds]
        histogram = torch.bincount(torch.bucketize(flat, edges, right=True) - 1, minlength=len(edges) - 1)

    Args:
        values: one tensor of any shape, or several of one dtype on one device; float16, bfloat16, float32 or
            float64. A non-contiguous tensor is copied.
        thresholds: numbers to count the entries above, in any order; not rounded to the values' dtype.
        impl: "auto", "cpp" or "reference".

    Returns:
        A `Summary` on the values' device, or a list of them, whose histograms can be added up.

    Raises:
        TypeError: a tensor has another dtype, or dtypes differ.
        ValueError: NaN or infinity among the values, NaN among the thresholds, or devices that differ.
    """
    flats, single = vectors_of(values, "Call summary once per {}.")
    bounds = checked_thresholds(thresholds)
    if not flats:
        return []
    results = [as_summary(*parts) for parts in zip(*_op(flats, bounds, impl, single), strict=True)]
    return results[0] if single else results


@torch.library.custom_op("tomfisher::summary", mutates_args=())
def _op(
    flats: Sequence[Tensor], thresholds: Sequence[float], impl: str, single: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    _, run = resolve("summary", impl, flats[0].device)
    extremes, histograms, above, status = run(flats, thresholds)
    check_finite(labels_of(len(flats), single), flats, status)
    return extremes, histograms, above


@_op.register_fake
def _(
    flats: Sequence[Tensor], thresholds: Sequence[float], impl: str, single: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return (
        [flat.new_empty(2) for flat in flats],
        [flat.new_empty(len(histogram_edges(flat.dtype)) - 1, dtype=torch.int64) for flat in flats],
        [flat.new_empty(len(thresholds), dtype=torch.int64) for flat in flats],
    )


def checked_thresholds(thresholds: Sequence[float]) -> list[float]:
    """The thresholds as Python floats, none of which is NaN."""
    bounds = [float(threshold) for threshold in thresholds]
    if any(math.isnan(bound) for bound in bounds):
        raise ValueError(f"thresholds must be numbers to compare with, without NaN, got {bounds}.")
    return bounds


def as_summary(extremes: Tensor, histogram: Tensor, above: Tensor) -> Summary:
    """The result from an implementation's parts."""
    edges = histogram_edges(extremes.dtype).to(extremes.device)
    return Summary(extremes[0], extremes[1], histogram, edges, above)
