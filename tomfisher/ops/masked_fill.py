"""`masked_fill_mean_`: overwrite entries with the mean of the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import tomfisher.ops.reference.masked_fill  # noqa: F401  (registers the definition)
from tomfisher.ops.dispatch import Impl, resolve
from tomfisher.ops.scatter import check_apart, check_kinds, check_positions, check_values


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
    refuse_full(weights, indices)
    if undo is None:
        undo = [weight.new_empty(len(index)) for weight, index in zip(weights, indices, strict=True)]
    check_values("undo", weights, indices, undo)
    check_sums(weights, sums)
    if weights:
        _op(weights, indices, undo, sums, impl)
    return list(undo)


def refuse_full(weights: Sequence[Tensor], indices: Sequence[Tensor]) -> None:
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


def check_sums(weights: Sequence[Tensor], sums: Tensor | None) -> None:
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
    failed = int(run(weights, indices, undo, sums))
    if failed >= 0:  # raised here, so that a compiled graph stops too
        raise NonFiniteMeanError(failed)


@_op.register_fake
def _(
    weights: Sequence[Tensor],
    indices: Sequence[Tensor],
    undo: Sequence[Tensor],
    sums: Tensor | None,
    impl: str,
) -> None:
    return None
