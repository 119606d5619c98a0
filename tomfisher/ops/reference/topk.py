"""Definition of `topk`: a threshold first, then the ties at it by index."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tomfisher.ops.dispatch import register


@register("topk", "reference")
def topk_reference(flats: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """Flat indices of the k largest entries of each vector, by value descending, then index ascending.

    Args:
        flats: finite vectors.
        counts: k of each vector.

    Returns:
        An int64 vector of length k for each.
    """
    return [_indices(flat, k) for flat, k in zip(flats, counts, strict=True)]


def _indices(flat: Tensor, k: int) -> Tensor:
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=flat.device)
    # torch.topk promises no order among equal values, so only its smallest value is used.
    threshold = torch.topk(flat, k, sorted=False).values.min()
    candidates = (flat >= threshold).nonzero().squeeze(1)
    keys = flat[candidates] + 0.0  # -0.0 becomes 0.0, also for sorts that look at bits
    order = torch.sort(keys, descending=True, stable=True).indices[:k]
    return candidates[order]
