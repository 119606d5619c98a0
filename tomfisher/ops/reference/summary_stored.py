"""Definition of `summary_stored`: map the file and look at it in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tomfisher.ops.dispatch import register
from tomfisher.ops.reference.summary import summary_reference
from tomfisher.ops.reference.topk_stored import mapped


@register("summary_stored", "reference")
def summary_stored_reference(
    path: str, offset: int, numel: int, dtype: torch.dtype, thresholds: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, int]:
    """What the entries of a vector in a file are like.

    Args:
        path: the file.
        offset: of the vector's first byte.
        numel: number of its entries.
        dtype: of its entries.
        thresholds: no NaN.

    Returns:
        As `summary_reference` for one vector, the status as a number.
    """
    extremes, histograms, above, status = summary_reference([mapped(path, offset, numel, dtype)], thresholds)
    return extremes[0], histograms[0], above[0], int(status)
