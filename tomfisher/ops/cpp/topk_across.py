"""`topk_across` by the C++ extension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)
from tomfisher.ops.dispatch import register


@register("topk_across", "cpp")
def topk_across_cpp(flats: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `tomfisher.ops.reference.topk_across` defines, in one pass over all vectors."""
    plain = [flat.contiguous() for flat in flats]
    return torch.ops.tomfisher_cpp.topk_across(plain, k, torch.get_num_threads())


@torch.library.register_fake("tomfisher_cpp::topk_across")
def _(flats: Sequence[Tensor], k: int, threads: int) -> tuple[Tensor, Tensor, Tensor]:
    owners, indices = (torch.empty(k, dtype=torch.int64) for _ in range(2))
    return owners, indices, torch.empty(len(flats), dtype=torch.int64)
