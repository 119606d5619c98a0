"""`summary` by the C++ extension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)
from tomfisher.ops.dispatch import register

_Parts = tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]


@register("summary", "cpp")
def summary_cpp(flats: Sequence[Tensor], thresholds: Sequence[float]) -> _Parts:
    """As `tomfisher.ops.reference.summary` defines, in one pass over each vector."""
    plain = [flat.contiguous() for flat in flats]
    bounds = torch.tensor(thresholds, dtype=torch.float64)
    return torch.ops.tomfisher_cpp.summary(plain, bounds, torch.get_num_threads())
