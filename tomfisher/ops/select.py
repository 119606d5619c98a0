"""The pass behind `topk` and `summary`: the k largest entries, what all of them are like, or both at once."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tomfisher.ops.dispatch import register, resolve, traced
from tomfisher.ops.vectors import (
    Span,
    check_count,
    check_counts,
    check_finite,
    check_span,
    first_non_finite,
    labels_of,
    vectors_of,
)


class Pass(NamedTuple):
    """What one pass over a vector found.

    Attributes:
        values: `[k]`, the vector's dtype, largest first; of a `Span` -0.0 as 0.0.
        indices: `[k]` int64; of equal values the lower comes first.
        counts: with thresholds: smallest and largest entry `[2]`, -0.0 as 0.0 (+inf and -inf without entries); the
            numbers of entries between the `histogram_edges`; the numbers above each threshold, int64. Otherwise empty.
    """

    values: Tensor
    indices: Tensor
    counts: Sequence[Tensor]


def select(
    values: Tensor | Span | Sequence[Tensor],
    k: int | Sequence[int],
    thresholds: Sequence[float] | None,
    impl: str,
    caller: str,
) -> tuple[list[Pass], bool]:
    """One pass over each vector, in memory or in a file.

    Args:
        values: one tensor, a span of a file, or several tensors of one dtype on one device.
        k: how many to select, 0 to the number of entries; for several tensors one number for all or one for each.
        thresholds: numbers to count the entries above; None counts nothing.
        impl: "auto", "triton", "cpp" or "reference".
        caller: the public function, for messages.

    Returns:
        A `Pass` per vector, and whether `values` was one.

    Raises:
        FileNotFoundError: no such file.
        TypeError: a dtype without an order here, dtypes that differ, or k is no integer.
        ValueError: NaN or infinity among the values, NaN among the thresholds, k out of range, lengths or devices that
            differ, or a span that does not lie within its file.
    """
    bounds = None if thresholds is None else _checked(thresholds)
    if isinstance(values, Span):
        return [_select_stored(values, k, bounds, impl)], True
    flats, single = vectors_of(values, f"Call {caller} once per {{}}.")
    counts = check_counts(k, flats, single)
    if not flats:
        return [], False
    run = _op if traced(*flats) else _run
    indices, *parts = run(flats, counts, bounds, impl, single)
    counted = [()] * len(flats) if bounds is None else list(zip(*parts, strict=True))
    return [
        Pass(flat[index], index, part) for flat, index, part in zip(flats, indices, counted, strict=True)
    ], single


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


def _checked(thresholds: Sequence[float]) -> list[float]:
    bounds = [float(threshold) for threshold in thresholds]
    if any(math.isnan(bound) for bound in bounds):
        raise ValueError(f"thresholds must be numbers to compare with, without NaN, got {bounds}.")
    return bounds


def _select_stored(span: Span, k: int | Sequence[int], thresholds: list[float] | None, impl: str) -> Pass:
    check_span(span)
    path = os.fspath(span.path)
    count = check_count(k, span.numel, path)
    _, run = resolve("topk_stored", impl, torch.device("cpu"))
    values, indices, counted, first = run(span, count, thresholds)
    if first >= 0:
        raise ValueError(
            f"{path} must hold finite values (they are put in an order), got NaN or infinity at flat index {first}."
        )
    return Pass(values, indices, counted)


def _run(
    flats: Sequence[Tensor],
    counts: Sequence[int],
    thresholds: Sequence[float] | None,
    impl: str,
    single: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    _, run = resolve("topk" if thresholds is None else "topk_summary", impl, flats[0].device)
    *parts, status = run(flats, counts, thresholds)
    # here and not in `select`, whose tensors may be fake: a compiled call refuses bad values as well
    check_finite(labels_of(len(flats), single), flats, status)
    indices, extremes, histograms, above = parts
    return indices, extremes, histograms, above


_op = torch.library.custom_op("tomfisher::topk", _run, mutates_args=())


@_op.register_fake
def _(
    flats: Sequence[Tensor],
    counts: Sequence[int],
    thresholds: Sequence[float] | None,
    impl: str,
    single: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    indices = [flat.new_empty(k, dtype=torch.int64) for flat, k in zip(flats, counts, strict=True)]
    if thresholds is None:
        return indices, [], [], []
    return (
        indices,
        [flat.new_empty(2) for flat in flats],
        [flat.new_empty(len(histogram_edges(flat.dtype)) - 1, dtype=torch.int64) for flat in flats],
        [flat.new_empty(len(thresholds), dtype=torch.int64) for flat in flats],
    )


@register("topk", "reference")
@register("topk_summary", "reference")
def _reference(
    flats: Sequence[Tensor], counts: Sequence[int], thresholds: Sequence[float] | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """The definition: a threshold first, then the ties at it by index; and counts on their own.

    Args:
        flats: at least one vector, all on one device.
        counts: k of each vector, 0 to its length.
        thresholds: no NaN; None counts nothing.

    Returns:
        `(indices, extremes, histograms, above, status)`: per vector the indices and the `counts` of a `Pass` (empty
        lists without thresholds), and `first_non_finite`. A vector's results mean nothing if its status is not -1.
    """
    indices = [indices_of_largest(flat, k) for flat, k in zip(flats, counts, strict=True)]
    status = first_non_finite(flats)
    if thresholds is None:
        return indices, [], [], [], status
    return (
        indices,
        [_extremes(flat) for flat in flats],
        [_histogram(flat) for flat in flats],
        [_above(flat, thresholds) for flat in flats],
        status,
    )


@register("topk_stored", "reference")
def _stored_reference(
    span: Span, k: int, thresholds: Sequence[float] | None
) -> tuple[Tensor, Tensor, Sequence[Tensor], int]:
    """The definition, of the file in memory.

    Args:
        span: within its file.
        k: 0 to the number of entries.
        thresholds: no NaN; None counts nothing.

    Returns:
        `(values, indices, counts, status)`: the parts of a `Pass`; and -1 or the first index that holds NaN or
        infinity, where the others then mean nothing.
    """
    flat = span.mapped()
    (indices,), *parts, status = _reference([flat], [k], thresholds)
    return flat[indices] + 0.0, indices, [part for (part,) in filter(None, parts)], int(status)


def indices_of_largest(flat: Tensor, k: int) -> Tensor:
    """Positions of the k largest entries; where not all are finite, k positions without meaning."""
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=flat.device)
    # torch.topk promises no order among equal values, so only its smallest value is used.
    threshold = torch.topk(flat, k, sorted=False).values.min()
    candidates = (flat < threshold).logical_not().nonzero().squeeze(1)
    keys = flat[candidates] + 0.0  # -0.0 becomes 0.0, also for sorts that look at bits
    order = torch.sort(keys, descending=True, stable=True).indices[:k]
    return candidates[order]


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
