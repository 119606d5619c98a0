"""`topk_summary`: the exact k largest entries and a summary of all, from one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

import tomfisher.ops.reference.topk_summary  # noqa: F401  (registers the definition)
from tomfisher.ops.dispatch import Impl, resolve
from tomfisher.ops.reference.summary import histogram_edges
from tomfisher.ops.summary import Summary, as_summary, checked_thresholds
from tomfisher.ops.topk import TopK, as_topk
from tomfisher.ops.vectors import check_counts, check_finite, labels_of, vectors_of


class TopKSummary(NamedTuple):
    """The k largest entries of one tensor, and what all of its entries are like.

    Attributes:
        top: as `topk` gives it.
        summary: as `summary` gives it.
    """

    top: TopK
    summary: Summary


@overload
def topk_summary(
    values: Tensor, k: int, thresholds: Sequence[float] = (), impl: Impl = "auto"
) -> TopKSummary: ...


@overload
def topk_summary(
    values: Sequence[Tensor],
    k: int | Sequence[int],
    thresholds: Sequence[float] = (),
    impl: Impl = "auto",
) -> list[TopKSummary]: ...


def topk_summary(
    values: Tensor | Sequence[Tensor],
    k: int | Sequence[int],
    thresholds: Sequence[float] = (),
    impl: Impl = "auto",
) -> TopKSummary | list[TopKSummary]:
    """Select the k largest entries and count all of them by size, exactly.

    Equivalent PyTorch::

        TopKSummary(topk(values, k), summary(values, thresholds))

    The C++ implementation counts each block of the values while the selection has it in the cache.

    Args:
        values: one tensor of any shape, or several of one dtype on one device; float16, bfloat16, float32 or
            float64. A non-contiguous tensor is copied.
        k: how many, 0 to the number of entries; for several tensors one number for all or one for each.
        thresholds: numbers to count the entries above, in any order; not rounded to the values' dtype.
        impl: "auto", "cpp" or "reference".

    Returns:
        A `TopKSummary` on the values' device, or a list of them.

    Raises:
        TypeError: a tensor has another dtype, dtypes differ, or k is no integer.
        ValueError: NaN or infinity among the values, NaN among the thresholds, k out of range, lengths or devices
            that differ.
    """
    flats, single = vectors_of(values, "Call topk_summary once per {}.")
    counts = check_counts(k, flats, single)
    bounds = checked_thresholds(thresholds)
    if not flats:
        return []
    indices, *parts = _op(flats, counts, bounds, impl, single)
    tops = [as_topk(flat[index], index) for flat, index in zip(flats, indices, strict=True)]
    summaries = [as_summary(*part) for part in zip(*parts, strict=True)]
    results = [TopKSummary(*both) for both in zip(tops, summaries, strict=True)]
    return results[0] if single else results


@torch.library.custom_op("tomfisher::topk_summary", mutates_args=())
def _op(
    flats: Sequence[Tensor], counts: Sequence[int], thresholds: Sequence[float], impl: str, single: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    _, run = resolve("topk_summary", impl, flats[0].device)
    indices, extremes, histograms, above, status = run(flats, counts, thresholds)
    check_finite(labels_of(len(flats), single), flats, status)
    return indices, extremes, histograms, above


@_op.register_fake
def _(
    flats: Sequence[Tensor], counts: Sequence[int], thresholds: Sequence[float], impl: str, single: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    return (
        [flat.new_empty(k, dtype=torch.int64) for flat, k in zip(flats, counts, strict=True)],
        [flat.new_empty(2) for flat in flats],
        [flat.new_empty(len(histogram_edges(flat.dtype)) - 1, dtype=torch.int64) for flat in flats],
        [flat.new_empty(len(thresholds), dtype=torch.int64) for flat in flats],
    )
