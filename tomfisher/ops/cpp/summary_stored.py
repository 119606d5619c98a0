"""`summary_stored` by the C++ extension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tomfisher.ops.cpp.topk_summary_stored import topk_summary_stored_cpp
from tomfisher.ops.dispatch import register


@register("summary_stored", "cpp")
def summary_stored_cpp(
    path: str, offset: int, numel: int, dtype: torch.dtype, thresholds: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, int]:
    """As `tomfisher.ops.reference.summary_stored` defines, without holding more than a block per thread.

    Raises:
        OSError: the file cannot be read.
    """
    _, _, extremes, histogram, above, first = topk_summary_stored_cpp(
        path, offset, numel, dtype, 0, thresholds
    )
    return extremes, histogram, above, first
