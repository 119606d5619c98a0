"""Definition of `topk_summary`: the selection, then the summary."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tomfisher.ops.dispatch import register
from tomfisher.ops.reference.summary import summary_reference
from tomfisher.ops.reference.topk import topk_reference


@register("topk_summary", "reference")
def topk_summary_reference(
    flats: Sequence[Tensor], counts: Sequence[int], thresholds: Sequence[float]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Flat indices of the k largest entries of each vector, and what all of its entries are like.

    Args:
        flats: at least one vector, all on one device.
        counts: k of each vector, 0 to its length.
        thresholds: no NaN.

    Returns:
        `(indices, extremes, histograms, above, status)`: the indices as `topk_reference` gives them, the others as
        `summary_reference` does.
    """
    indices, _ = topk_reference(flats, counts)
    return indices, *summary_reference(flats, thresholds)
