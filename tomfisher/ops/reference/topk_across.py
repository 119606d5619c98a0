"""Definition of `topk_across`: each tensor's own largest entries, merged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tomfisher.ops.dispatch import register
from tomfisher.ops.reference.topk import first_non_finite, indices_of_largest


@register("topk_across", "reference")
def topk_across_reference(flats: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest entries of all vectors: value descending, then vector, then position ascending.

    Args:
        flats: at least one vector, one dtype, one device.
        k: 0 to the number of all entries.

    Returns:
        `(owners, indices, status)`: which vector each entry lies in and its position there, int64 `[k]`; and
        per vector -1 or the first position of NaN or infinity, where owners and indices then mean nothing.
    """
    device = flats[0].device
    status = torch.tensor([first_non_finite(flat) for flat in flats], device=device)
    tops = [indices_of_largest(flat, min(k, flat.numel())) for flat in flats]
    values = torch.cat([flat[top] for flat, top in zip(flats, tops, strict=True)])
    owners = torch.repeat_interleave(torch.tensor([len(top) for top in tops], device=device))
    # the parts follow each other in the order of ties, and a stable sort keeps it
    order = torch.sort(values + 0.0, descending=True, stable=True).indices[:k]
    return owners[order], torch.cat(tops)[order], status
