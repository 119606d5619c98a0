"""Definition of `masked_fill_mean_`, and the sum of unmasked entries that it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tomfisher.ops.dispatch import register
from tomfisher.ops.reference.scatter import gather, scatter_reference

_ROW = 1 << 14  # entries added up serially, whatever the thread count
_CHUNK = 1 << 18  # entries held in float64 at one time


@register("masked_fill_mean_", "reference")
def masked_fill_mean_reference(
    weights: Sequence[Tensor], indices: Sequence[Tensor], undo: Sequence[Tensor]
) -> int | None:
    """Fill each index with the mean of the other entries; the old values go to `undo`.

    Returns:
        None, or the position of the first weight without a finite mean: then nothing was written.
    """
    means = [_mean(weight, index) for weight, index in zip(weights, indices, strict=True)]
    for position, mean in enumerate(means):
        if not math.isfinite(mean):
            return position
    fills = [
        weight.new_full((index.numel(),), round_once(mean, weight.dtype))
        for weight, index, mean in zip(weights, indices, means, strict=True)
    ]
    for weight, index, old in zip(weights, indices, undo, strict=True):
        old.copy_(gather(weight, index))
    scatter_reference(weights, indices, fills)
    return None


def _mean(weight: Tensor, index: Tensor) -> float:
    """Mean of the unmasked entries; 0.0 where nothing is masked, and so nothing will be written."""
    return unmasked_sum(weight, index) / (weight.numel() - index.numel()) if index.numel() else 0.0


def unmasked_sum(weight: Tensor, index: Tensor) -> float:
    """Sum in float64 of the entries of `weight` whose flat position is not in `index`.

    Rows of fixed length are added up serially and their sums exactly (`math.fsum`), so the result depends
    neither on the thread count nor on the chunking. A non-contiguous weight is copied.

    Args:
        weight: floating-point, any shape.
        index: int64 `[k]`, in range, no repetitions, any order.

    Returns:
        The sum; NaN or infinite if an unmasked entry is.
    """
    flat = weight.detach().reshape(-1)
    ordered = index.sort().values
    starts = range(0, flat.numel(), _CHUNK)
    bounds = torch.tensor([*starts, flat.numel()], device=flat.device)
    cuts = torch.searchsorted(ordered, bounds).tolist()
    partial: list[float] = []
    for start, low, high in zip(starts, cuts, cuts[1:], strict=False):
        chunk = flat[start : start + _CHUNK].to(torch.float64, copy=True)
        chunk[ordered[low:high] - start] = 0.0
        whole = chunk.numel() // _ROW * _ROW
        partial += chunk[:whole].view(-1, _ROW).sum(1).tolist()
        partial.append(chunk[whole:].sum().item())
    if not all(map(math.isfinite, partial)):
        return math.nan
    return math.fsum(partial)


def round_once(value: float, dtype: torch.dtype) -> float:
    """A float whose conversion to `dtype` by torch is the correctly rounded `value`.

    Torch converts float64 to 16 bits by way of float32, which rounds twice. Rounding to odd on the way
    (truncate, then set the last bit if anything was cut off) keeps the second rounding right.

    Args:
        value: finite.
        dtype: float16, bfloat16, float32 or float64.

    Returns:
        `value`, or for 16-bit types its float32 neighbour to convert from.
    """
    nearest = np.float32(value)
    if dtype.itemsize != 2 or float(nearest) == value or not np.isfinite(nearest):
        return value
    bits = int(nearest.view(np.uint32)) - (abs(float(nearest)) > abs(value))
    return float(np.uint32(bits | 1).view(np.float32))
