"""`topk_summary_stored` by the C++ extension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)
from tomfisher.ops.cpp.topk_stored import reading
from tomfisher.ops.cpp.topk_summary import histogram_bins
from tomfisher.ops.dispatch import register


@register("topk_summary_stored", "cpp")
def topk_summary_stored_cpp(
    path: str, offset: int, numel: int, dtype: torch.dtype, k: int, thresholds: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """As `tomfisher.ops.reference.topk_summary_stored` defines, without holding more than a block per thread.

    Raises:
        OSError: the file cannot be read.
    """
    bounds = torch.tensor(thresholds, dtype=torch.float64)
    with reading():
        *parts, status = torch.ops.tomfisher_cpp.topk_summary_file(
            path, offset, numel, dtype, k, bounds, torch.get_num_threads()
        )
    values, indices, extremes, histogram, above = parts
    return values, indices, extremes, histogram, above, int(status)


@torch.library.register_fake("tomfisher_cpp::topk_summary_file")
def _(
    path: str, offset: int, count: int, dtype: torch.dtype, k: int, thresholds: Tensor, threads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    indices, histogram, above, status = (
        torch.empty(size, dtype=torch.int64) for size in (k, histogram_bins(dtype), len(thresholds), 1)
    )
    return torch.empty(k, dtype=dtype), indices, torch.empty(2, dtype=dtype), histogram, above, status
