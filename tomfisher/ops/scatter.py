"""`scatter_`: write values to flat positions, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from tomfisher.ops.checks import DTYPES, is_expanded, overlap
from tomfisher.ops.dispatch import Impl, register, resolve

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def scatter_(
    weights: Sequence[Tensor], indices: Sequence[Tensor], values: Sequence[Tensor], impl: Impl = "auto"
) -> None:
    """Write `values[i]` to the flat row-major positions `indices[i]` of `weights[i]`, bit patterns unchanged.

    Equivalent PyTorch, for a contiguous weight: `weight.view(-1)[index] = value`.
    Everything is checked before the first entry is written; autograd does not record the write.

    Args:
        weights: float16, bfloat16, float32 or float64 tensors of any shape and strides, on one device. Where
            they share memory, no entry may be named twice.
        indices: int64 vectors without repetitions, in any order, on the same device.
        values: vectors of the indices' lengths and the weights' dtypes, on the same device.
        impl: "auto", "triton", "cpp" or "reference".

    Raises:
        TypeError: a dtype does not fit.
        ValueError: lengths or devices differ, an index is out of range or given twice, or values lie in the
            memory of a weight (between its first and its last entry).
    """
    check_kinds(weights, indices)
    check_values("values", weights, indices, values)
    if weights:
        _op(weights, indices, values, impl)


@torch.library.custom_op("tomfisher::scatter_", mutates_args=("weights",))
def _op(weights: Sequence[Tensor], indices: Sequence[Tensor], values: Sequence[Tensor], impl: str) -> None:
    check_positions(weights, indices)
    check_apart("values", weights, values)
    _, run = resolve("scatter_", impl, weights[0].device)
    run(weights, indices, values)


_op.register_fake(lambda *_: None)


@register("scatter_", "reference")
def scatter_reference(weights: Sequence[Tensor], indices: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """`weight.view(-1)[index] = value` through integer views, so that NaN payloads survive.

    Every position is worked out before the first write.
    """
    bits = [_bits(weight) for weight in weights]
    positions = [_position(entries, index) for entries, index in zip(bits, indices, strict=True)]
    for entries, position, value in zip(bits, positions, values, strict=True):
        if value.numel():
            entries[position] = _bits(value)


def gather(weight: Tensor, index: Tensor) -> Tensor:
    """The entries of `weight` at flat row-major positions `index`, bit patterns unchanged.

    Args:
        weight: any shape and strides.
        index: int64 `[k]`, in range.

    Returns:
        A new vector `[k]` of the weight's dtype.
    """
    bits = _bits(weight)
    return bits[_position(bits, index)].view(weight.dtype)


def _bits(tensor: Tensor) -> Tensor:
    bits = tensor.detach().view(_BITS[tensor.element_size()])
    return bits.view(-1) if bits.is_contiguous() else bits


def _position(bits: Tensor, index: Tensor) -> Tensor | tuple[Tensor, ...]:
    return index if bits.ndim == 1 else torch.unravel_index(index, bits.shape)


def check_kinds(weights: Sequence[Tensor], indices: Sequence[Tensor]) -> None:
    """Refuse what can be told without looking at memory, and so of fake tensors too.

    Raises:
        TypeError: a weight's or an index's dtype does not fit.
        ValueError: lengths, devices or strides do not fit.
    """
    if len(weights) != len(indices):
        raise ValueError(f"weights and indices must be of one length, got {len(weights)} and {len(indices)}.")
    for i, (weight, index) in enumerate(zip(weights, indices, strict=True)):
        _check_kinds(i, weight, index, weights[0].device)


def check_positions(weights: Sequence[Tensor], indices: Sequence[Tensor]) -> None:
    """Refuse an index that is out of range or given twice.

    All positions are looked at together: on a GPU that costs one synchronisation, not one per tensor.

    Raises:
        ValueError: there is one.
    """
    if not _all_ascending(indices, [weight.numel() for weight in weights]):
        for i, (weight, index) in enumerate(zip(weights, indices, strict=True)):
            _check_positions(f"indices[{i}]", index, weight.numel())


def _check_kinds(i: int, weight: Tensor, index: Tensor, device: torch.device) -> None:
    if weight.dtype not in DTYPES:
        raise TypeError(f"weights[{i}] must be float16, bfloat16, float32 or float64, got {weight.dtype}.")
    if index.dtype != torch.int64:
        raise TypeError(f"indices[{i}] must be int64, got {index.dtype}.")
    if index.ndim != 1:
        raise ValueError(f"indices[{i}] must be a vector of positions, got shape {tuple(index.shape)}.")
    if not weight.device == index.device == device:
        raise ValueError(
            f"All weights and indices must be on one device, got weights[{i}] on {weight.device}, "
            f"indices[{i}] on {index.device}, weights[0] on {device}. Call once per device."
        )
    if not weight.is_contiguous() and is_expanded(weight):
        raise ValueError(f"weights[{i}] is an expanded view: its entries share memory. Pass a clone.")


def _all_ascending(indices: Sequence[Tensor], sizes: list[int]) -> bool:
    """Whether every index vector rises strictly and stays within its tensor; such vectors are fine."""
    counts = [index.numel() for index in indices]
    if not any(counts):
        return True
    flat = torch.cat(tuple(indices))
    ends = list(itertools.accumulate(sizes))
    table = torch.tensor([counts, sizes, [0, *ends[:-1]]]).to(flat.device)
    limit, base = table[1:].repeat_interleave(table[0], dim=1, output_size=flat.numel()).unbind()
    within = ((flat >= 0) & (flat < limit)).all()
    place = flat + base  # as if the tensors lay one after another
    return bool(within & (place[1:] > place[:-1]).all())


def _check_positions(label: str, index: Tensor, numel: int) -> None:
    if index.numel() == 0:
        return
    ordered = index.sort().values
    low, high = int(ordered[0]), int(ordered[-1])
    if low < 0 or high >= numel:
        raise ValueError(f"{label} must lie between 0 and {numel - 1}, got {low if low < 0 else high}.")
    if bool((repeated := ordered[1:] == ordered[:-1]).any()):
        raise ValueError(f"{label} must not repeat a position, got {int(ordered[1:][repeated][0])} twice.")


def check_values(
    label: str, weights: Sequence[Tensor], indices: Sequence[Tensor], values: Sequence[Tensor]
) -> None:
    """Refuse value vectors that do not fit their weights and indices.

    Raises:
        TypeError: a vector's dtype is not its weight's.
        ValueError: numbers, shapes or devices differ.
    """
    if len(values) != len(weights):
        raise ValueError(f"{label} must hold one tensor per weight, got {len(values)} for {len(weights)}.")
    for i, (weight, index, value) in enumerate(zip(weights, indices, values, strict=True)):
        if value.dtype != weight.dtype:
            raise TypeError(f"{label}[{i}] must have its weight's dtype {weight.dtype}, got {value.dtype}.")
        if value.shape != index.shape or value.device != weight.device:
            raise ValueError(
                f"{label}[{i}] must have the index's shape {tuple(index.shape)} on {weight.device}, "
                f"got {tuple(value.shape)} on {value.device}."
            )


def check_apart(
    label: str, weights: Sequence[Tensor], values: Sequence[Tensor], written: bool = False
) -> None:
    """Refuse vectors that lie between the first and the last entry of a weight, or of one another if `written`.

    Raises:
        ValueError: there is one.
    """
    pair = overlap(weights, values)
    names = [*(f"weights[{i}]" for i in range(len(weights))), *(f"{label}[{i}]" for i in range(len(values)))]
    if not pair and written:
        pair, names = overlap(values, [], apart=True), names[len(weights) :]
    if pair:
        raise ValueError(
            f"{names[pair[0]]} and {names[pair[1]]} share memory: the old values could be lost. Pass a clone "
            "of one."
        )
