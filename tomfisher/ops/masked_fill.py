"""`masked_fill_mean_`: overwrite entries with the mean of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tomfisher.ops.dispatch import Impl, register, resolve
from tomfisher.ops.scatter import (
    check_apart,
    check_kinds,
    check_positions,
    check_values,
    gather,
    scatter_reference,
)
from tomfisher.ops.weight_sums import chunks, exact_total, row_sums


class NonFiniteMeanError(ValueError):
    """The unmasked entries of `weights[position]` have no finite mean; nothing was written."""

    def __init__(self, position: int) -> None:
        super().__init__(
            f"weights[{position}] holds NaN or infinity outside the mask, so its entries have no mean. "
            "Nothing was written."
        )
        self.position = position


@torch.no_grad()
def masked_fill_mean_(
    weights: Sequence[Tensor],
    indices: Sequence[Tensor],
    undo: Sequence[Tensor] | None = None,
    sums: Tensor | None = None,
    impl: Impl = "auto",
) -> list[Tensor]:
    """Write to the masked entries of each tensor the mean of its unmasked entries.

    Equivalent PyTorch, for a contiguous weight::

        keep = torch.ones(weight.numel(), dtype=torch.bool).index_fill(0, index, False)
        undo = weight.view(-1)[index]
        weight.view(-1)[index] = weight.view(-1)[keep].double().mean().to(weight.dtype)

    The mean is accumulated in float64 over the unmasked entries and rounded once to the weight's dtype. All
    means are taken before the first entry is written; after an error neither weights nor `undo` have changed,
    but for running out of memory while `undo` itself is written. `scatter_(weights, indices, undo)` undoes it.

    With `sums`, the mean is `(sum of all - sum of masked) / (number of unmasked)`, and the work is proportional
    to the number of masked entries. It may be off by a quarter of a unit in the last place before it is
    rounded. A tensor for which that cannot be warranted (its sums cancel, or a masked entry dwarfs the others;
    always in float64) is read again, unmasked entries alone.

    Args:
        weights: float16, bfloat16, float32 or float64 tensors of any shape and strides, on one device. Where
            they share memory, no entry may be masked twice.
        indices: int64 vectors of flat row-major positions without repetitions, on the same device.
        undo: vectors to receive the old values (the indices' lengths, the weights' dtypes); made if None.
        sums: `weight_sums(weights)` as the weights are now; None reads them.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        The old values, one vector `[k]` per weight: `undo` if it was given.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: as for `scatter_`; or a tensor is masked entirely; or its unmasked entries have no finite
            mean (`NonFiniteMeanError`).
    """
    check_kinds(weights, indices)
    _refuse_full(weights, indices)
    if undo is None:
        undo = [weight.new_empty(len(index)) for weight, index in zip(weights, indices, strict=True)]
    check_values("undo", weights, indices, undo)
    _check_sums(weights, sums)
    if weights:
        _op(weights, indices, undo, sums, impl)
    return list(undo)


def _refuse_full(weights: Sequence[Tensor], indices: Sequence[Tensor]) -> None:
    """Refuse a tensor without an unmasked entry.

    Raises:
        ValueError: there is one.
    """
    for i, (weight, index) in enumerate(zip(weights, indices, strict=True)):
        if 0 < weight.numel() == index.numel():
            raise ValueError(
                f"weights[{i}] is masked entirely ({index.numel()} entries): no entry is left to average. "
                "Mask fewer, or fill with a number."
            )


def _check_sums(weights: Sequence[Tensor], sums: Tensor | None) -> None:
    """Refuse what cannot be sums of these weights.

    Raises:
        TypeError: they are not float64.
        ValueError: shape or device differ.
    """
    if sums is None:
        return
    if sums.dtype != torch.float64:
        raise TypeError(f"sums must be float64, got {sums.dtype}. Take them from weight_sums.")
    device = weights[0].device if weights else sums.device
    if sums.shape != (len(weights), 2) or sums.device != device:
        raise ValueError(
            f"sums must have shape ({len(weights)}, 2) on {device}, got {tuple(sums.shape)} on {sums.device}. "
            "Take them from weight_sums(weights)."
        )


@torch.library.custom_op("tomfisher::masked_fill_mean_", mutates_args=("weights", "undo"))
def _op(
    weights: Sequence[Tensor],
    indices: Sequence[Tensor],
    undo: Sequence[Tensor],
    sums: Tensor | None,
    impl: str,
) -> None:
    check_positions(weights, indices)
    check_apart("undo", weights, undo, written=True)
    _, run = resolve("masked_fill_mean_", impl, weights[0].device)
    check_means(run(weights, indices, undo, sums))  # here, so that a compiled graph stops too


_op.register_fake(lambda *_: None)


def check_means(means: Tensor) -> None:
    """Refuse the means of an implementation that has written nothing; it has, where they pass: no memory is asked for.

    Raises:
        NonFiniteMeanError: a mean is not finite.
    """
    finite = list(map(math.isfinite, means.tolist()))
    if not all(finite):
        raise NonFiniteMeanError(finite.index(False))


@register("masked_fill_mean_", "reference")
def _reference(
    weights: Sequence[Tensor], indices: Sequence[Tensor], undo: Sequence[Tensor], sums: Tensor | None
) -> Tensor:
    """Fill each index with the mean of the other entries; the old values go to `undo`.

    Returns:
        float64 `[n]` on the CPU: the means before they are rounded, 0 where nothing is masked. If one is not
        finite, nothing was written.
    """
    olds = [gather(weight, index) for weight, index in zip(weights, indices, strict=True)]
    known: list[list[float] | None] = [None] * len(weights) if sums is None else sums.tolist()
    each = [_mean(*each) for each in zip(weights, indices, olds, known, strict=True)]
    means = torch.tensor(each, dtype=torch.float64)
    if not means.isfinite().all():
        return means
    fills = [
        round_once(mean, weight.dtype).to(weight.device).expand(index.numel())
        for weight, index, mean in zip(weights, indices, means, strict=True)
    ]
    try:
        scatter_reference(weights, indices, fills)
        for old, buffer in zip(olds, undo, strict=True):
            buffer.copy_(old)
    except BaseException:
        scatter_reference(weights, indices, olds)
        raise
    return means


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


def round_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 values correctly rounded to a dtype.

    Torch converts float64 to 16 bits by way of float32, which rounds twice. Rounding to odd on the way
    (truncate, then set the last bit if anything was cut off) keeps the second rounding right.

    Args:
        values: float64, any shape.
        dtype: float16, bfloat16, float32 or float64.

    Returns:
        The values in `dtype`, infinite where they are beyond its largest number.
    """
    if dtype.itemsize != 2:
        return values.to(dtype)
    nearest = values.float()
    bits = nearest.view(torch.int32) - (nearest.double().abs() > values.abs()).int()
    exact = (nearest.double() == values) | ~nearest.isfinite()
    return torch.where(exact, nearest, (bits | 1).view(torch.float32)).to(dtype)
