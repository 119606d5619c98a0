"""`summary`: extremes, a histogram over powers of two, and how many entries are above x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

from torch import Tensor

from tomfisher.ops.dispatch import Impl
from tomfisher.ops.select import Pass, histogram_edges, select
from tomfisher.ops.vectors import Span


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
def summary(values: Tensor | Span, thresholds: Sequence[float] = (), impl: Impl = "auto") -> Summary: ...


@overload
def summary(
    values: Sequence[Tensor], thresholds: Sequence[float] = (), impl: Impl = "auto"
) -> list[Summary]: ...


def summary(
    values: Tensor | Span | Sequence[Tensor], thresholds: Sequence[float] = (), impl: Impl = "auto"
) -> Summary | list[Summary]:
    """Count entries by size, exactly; the C++ implementation reads each tensor once.

    Equivalent PyTorch::

        flat = values.flatten().double()
        above = [(flat > x).sum() for x in thresholds]
        histogram = torch.bincount(torch.bucketize(flat, edges, right=True) - 1, minlength=len(edges) - 1)

    Args:
        values: one tensor of any shape, or several of one dtype on one device; float16, bfloat16, float32 or
            float64. A non-contiguous tensor is copied; a `Span` stays in its file, of which the C++ implementation
            reads blocks of 1 MiB on every thread.
        thresholds: numbers to count the entries above, in any order; not rounded to the values' dtype.
        impl: "auto", "cpp" or "reference".

    Returns:
        A `Summary` on the values' device, or a list of them, whose histograms can be added up.

    Raises:
        FileNotFoundError: no such file.
        TypeError: a tensor has another dtype, or dtypes differ.
        ValueError: NaN or infinity among the values, NaN among the thresholds, devices that differ, or a span that
            does not lie within its file.
    """
    passes, single = select(values, 0, thresholds, impl, "summary")
    results = [as_summary(counted) for counted in passes]
    return results[0] if single else results


def as_summary(counted: Pass) -> Summary:
    """The result from a pass that counted."""
    extremes, histogram, above = counted.counts
    edges = histogram_edges(extremes.dtype).to(extremes.device)
    return Summary(extremes[0], extremes[1], histogram, edges, above)
