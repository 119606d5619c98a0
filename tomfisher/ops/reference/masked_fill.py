"""Definition of `masked_fill_mean_`, and the sum of unmasked entries that it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tomfisher.ops.dispatch import register
from tomfisher.ops.reference.scatter import gather, scatter_reference
from tomfisher.ops.reference.weight_sums import chunks, exact_total, row_sums


@register("masked_fill_mean_", "reference")
def masked_fill_mean_reference(
    weights: Sequence[Tensor], indices: Sequence[Tensor], undo: Sequence[Tensor], sums: Tensor | None
) -> Tensor:
    """Fill each index with the mean of the other entries; the old values go to `undo`.

    Returns:
        int64 `[1]` on the CPU: -1, or the position of the first weight without a finite mean: then nothing
        was written.
    """
    olds = [gather(weight, index) for weight, index in zip(weights, indices, strict=True)]
    known: list[list[float] | None] = [None] * len(weights) if sums is None else sums.tolist()
    means = [_mean(*each) for each in zip(weights, indices, olds, known, strict=True)]
    for position, mean in enumerate(means):
        if not math.isfinite(mean):
            return torch.tensor([position])
    fills = [
        weight.new_full((index.numel(),), round_once(mean, weight.dtype))
        for weight, index, mean in zip(weights, indices, means, strict=True)
    ]
    done = torch.tensor([-1])
    try:
        scatter_reference(weights, indices, fills)
        for old, buffer in zip(olds, undo, strict=True):
            buffer.copy_(old)
    except BaseException:
        scatter_reference(weights, indices, olds)
        raise
    return done


def _mean(weight: Tensor, index: Tensor, old: Tensor, sums: list[float] | None) -> float:
    """Mean of the unmasked entries; 0.0 where nothing is masked, and so nothing will be written."""
    if not index.numel():
        return 0.0
    count = weight.numel() - index.numel()
    if sums is not None:
        total = sums[0] - exact_total(row_sums(old.double()))
        if _trusted(total, sums[1], weight.dtype):
            return total / count
    return unmasked_sum(weight, index) / count


def _trusted(total: float, absolute: float, dtype: torch.dtype) -> bool:
    """Whether a difference of sums is good to a quarter of a unit in the last place of `dtype`.

    Both sums are off by at most 2^-47 of the absolute sum, so their difference by 2^-46 of it; a quarter of a
    unit is at least an eighth of the dtype's epsilon. Where they cancel, where a masked entry dwarfs the others
    or is not finite, or where a sum of finite entries overflowed, the answer is no; for float64 it is yes only
    if the tensor is all zeros.
    """
    return math.isfinite(total) and absolute * 2.0**-46 <= abs(total) * torch.finfo(dtype).eps / 8


def unmasked_sum(weight: Tensor, index: Tensor) -> float:
    """Sum in float64 of the entries of `weight` whose flat position is not in `index`.

    Rows of fixed length are added up by torch and their sums exactly (`math.fsum`), so the result depends
    neither on the thread count nor on the chunking. A non-contiguous weight is copied.

    Args:
        weight: floating-point, any shape.
        index: int64 `[k]`, in range, no repetitions, any order.

    Returns:
        The sum; NaN if an unmasked entry is not finite.
    """
    ordered = index.sort().values
    partial: list[float] = []
    for start, chunk in chunks(weight):
        bounds = torch.tensor([start, start + chunk.numel()], device=ordered.device)
        low, high = torch.searchsorted(ordered, bounds).tolist()
        chunk[ordered[low:high] - start] = 0.0
        partial += row_sums(chunk)
    return exact_total(partial)


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
    if dtype.itemsize != 2:
        return value
    nearest = np.float32(value)
    if float(nearest) == value or not np.isfinite(nearest):
        return value
    bits = int(nearest.view(np.uint32)) - (abs(float(nearest)) > abs(value))
    return float(np.uint32(bits | 1).view(np.float32))
