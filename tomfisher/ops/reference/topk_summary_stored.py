"""Definition of `topk_summary_stored`: the selection, then the summary, of the same file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tomfisher.ops.dispatch import register
from tomfisher.ops.reference.summary_stored import summary_stored_reference
from tomfisher.ops.reference.topk_stored import topk_stored_reference


@register("topk_summary_stored", "reference")
def topk_summary_stored_reference(
    path: str, offset: int, numel: int, dtype: torch.dtype, k: int, thresholds: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """The k largest entries of a vector in a file, and what all of its entries are like.

    Args:
        path: the file.
        offset: of the vector's first byte.
        numel: number of its entries.
        dtype: of its entries.
        k: 0 to `numel`.
        thresholds: no NaN.

    Returns:
        `(values, indices, extremes, histogram, above, first)`: the first two as `topk_stored_reference` gives them,
        the others as `summary_stored_reference` does.
    """
    values, indices, _ = topk_stored_reference(path, offset, numel, dtype, k)
    return values, indices, *summary_stored_reference(path, offset, numel, dtype, thresholds)
