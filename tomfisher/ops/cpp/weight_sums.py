"""`weight_sums` by the C++ extension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)
from tomfisher.ops.dispatch import register


@register("weight_sums", "cpp")
def weight_sums_cpp(weights: Sequence[Tensor]) -> Tensor:
    """Sum and sum of absolute values of each tensor, float64 `[n, 2]`; a non-contiguous one is copied."""
    plain = [weight.contiguous() for weight in weights]
    return torch.ops.tomfisher_cpp.weight_sums(plain, torch.get_num_threads())
