"""Definition of `topk`: a threshold first, then the ties at it by index."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tomfisher.ops.dispatch import register


@register("topk", "reference")
def topk_reference(flats: Sequence[Tensor], counts: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Flat indices of the k largest entries of each vector, by value descending, then index ascending.

    Args:
        flats: at least one vector, all on one device.
        counts: k of each vector, 0 to its length.

    Returns:
        An int64 vector of length k for each, and an int64 status vector on the vectors' device: -1, or the
        first position that holds NaN or infinity (also when k is 0); that vector's indices then mean nothing.
    """
    status = torch.tensor([first_non_finite(flat) for flat in flats], device=flats[0].device)
    return [indices_of_largest(flat, k) for flat, k in zip(flats, counts, strict=True)], status


def first_non_finite(flat: Tensor) -> int:
    """Position of the first NaN or infinity, -1 without any."""
    if flat.numel() == 0 or all(torch.isfinite(bound) for bound in torch.aminmax(flat)):
        return -1
    return int(torch.isfinite(flat).logical_not().nonzero()[0])


def indices_of_largest(flat: Tensor, k: int) -> Tensor:
    """Positions of the k largest entries; where not all are finite, k positions without meaning."""
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=flat.device)
    # torch.topk promises no order among equal values, so only its smallest value is used.
    threshold = torch.topk(flat, k, sorted=False).values.min()
    candidates = (flat < threshold).logical_not().nonzero().squeeze(1)
    keys = flat[candidates] + 0.0  # -0.0 becomes 0.0, also for sorts that look at bits
    order = torch.sort(keys, descending=True, stable=True).indices[:k]
    return candidates[order]
