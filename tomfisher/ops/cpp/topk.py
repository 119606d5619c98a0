"""`topk` by the C++ extension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)
from tomfisher.ops.dispatch import register


@register("topk", "cpp")
def topk_cpp(flats: Sequence[Tensor], counts: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """As `tomfisher.ops.reference.topk` defines; the search for NaN and infinity is part of the same pass."""
    plain = [flat.contiguous() for flat in flats]
    return torch.ops.tomfisher_cpp.topk(plain, list(counts), torch.get_num_threads())


@torch.library.register_fake("tomfisher_cpp::topk")
def _(flats: Sequence[Tensor], counts: Sequence[int], threads: int) -> tuple[list[Tensor], Tensor]:
    indices = [torch.empty(k, dtype=torch.int64) for k in counts]
    return indices, torch.empty(len(flats), dtype=torch.int64)
