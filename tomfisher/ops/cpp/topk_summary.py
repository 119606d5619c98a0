"""`topk_summary` by the C++ extension."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)
from tomfisher.ops.dispatch import register

_Parts = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor]


@register("topk_summary", "cpp")
def topk_summary_cpp(flats: Sequence[Tensor], counts: Sequence[int], thresholds: Sequence[float]) -> _Parts:
    """As `tomfisher.ops.reference.topk_summary` defines, in the pass of the selection."""
    plain = [flat.contiguous() for flat in flats]
    bounds = torch.tensor(thresholds, dtype=torch.float64)
    return torch.ops.tomfisher_cpp.topk_summary(plain, list(counts), bounds, torch.get_num_threads())


def histogram_bins(dtype: torch.dtype) -> int:
    """How long the histogram is: one bin for negative numbers, one per exponent, zeros apart."""
    mantissa = round(-math.log2(torch.finfo(dtype).eps))
    return (1 << (8 * dtype.itemsize - 1 - mantissa)) + 1


@torch.library.register_fake("tomfisher_cpp::topk_summary")
def _(flats: Sequence[Tensor], counts: Sequence[int], thresholds: Tensor, threads: int) -> _Parts:
    return (
        [torch.empty(k, dtype=torch.int64) for k in counts],
        [flat.new_empty(2) for flat in flats],
        [torch.empty(histogram_bins(flat.dtype), dtype=torch.int64) for flat in flats],
        [torch.empty(len(thresholds), dtype=torch.int64) for _ in flats],
        torch.empty(len(flats), dtype=torch.int64),
    )
