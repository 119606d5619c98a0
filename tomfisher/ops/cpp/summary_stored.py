"""`summary_stored` by the C++ extension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)
from tomfisher.ops.cpp.topk_stored import reading
from tomfisher.ops.dispatch import register


@register("summary_stored", "cpp")
def summary_stored_cpp(
    path: str, offset: int, numel: int, dtype: torch.dtype, thresholds: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, int]:
    """As `tomfisher.ops.reference.summary_stored` defines, without holding more than a block per thread.

    Raises:
        OSError: the file cannot be read.
    """
    bounds = torch.tensor(thresholds, dtype=torch.float64)
    with reading():
        extremes, histogram, above, status = torch.ops.tomfisher_cpp.summary_file(
            path, offset, numel, dtype, bounds, torch.get_num_threads()
        )
    return extremes, histogram, above, int(status)
