"""What several operations ask of their arguments: dtypes, lengths, memory of its own."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Of weights, gradients and Fisher values."""

ACTIVATIONS = (torch.float16, torch.bfloat16, torch.float32)
"""Of what a model computes on the way: queries, keys, inputs of a layer."""


def integers(values: Sequence[int] | Tensor, name: str) -> list[int]:
    """Whole numbers as a list.

    Raises:
        TypeError: one is no integer.
    """
    given = values.tolist() if isinstance(values, Tensor) else list(values)
    try:
        return list(map(operator.index, given))  # there are thousands of segments where experts are fused
    except TypeError:
        raise TypeError(
            f"{name} must be integers, got {given[:8]}. Round them first, as you mean it."
        ) from None


def valid_lengths(lengths: Sequence[int] | Tensor | None, batch: int, longest: int) -> list[int]:
    """The number of valid positions of each sequence.

    Args:
        lengths: what the caller gave; None: all positions.
        batch: number of sequences.
        longest: positions of the padded batch.

    Raises:
        TypeError: one is no integer.
        ValueError: not one number from 0 to `longest` for each sequence.
    """
    if lengths is None:
        return [longest] * batch
    counts = integers(lengths, "lengths")
    if len(counts) != batch or any(not 0 <= n <= longest for n in counts):
        raise ValueError(f"lengths must be {batch} numbers between 0 and {longest}, got {counts[:8]}.")
    return counts


def is_expanded(tensor: Tensor) -> bool:
    """Whether entries of the tensor share memory with one another, as in a view that `expand` made."""
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


def overlap(written: Sequence[Tensor], read: Sequence[Tensor], apart: bool = False) -> tuple[int, int] | None:
    """Two tensors of which one at least is written and one lies between the first and the last byte of the other.

    Args:
        written: they may overlap one another unless `apart`.
        read: they may overlap one another.
        apart: whether two written ones count too.

    Returns:
        Their places in `[*written, *read]`, or None where there are none.
    """
    count = len(written)
    spans = sorted((*_span(t), i) for i, t in enumerate((*written, *read)) if t.numel())
    ends = [0, 0]  # the last byte so far of what is read and of what is written
    owners = [0, 0]
    for start, stop, i in spans:
        writes = i < count
        if start < ends[not writes]:
            return owners[not writes], i
        if writes and apart and start < ends[1]:
            return owners[1], i
        if stop > ends[writes]:
            ends[writes], owners[writes] = stop, i
    return None


def _span(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte and of the first after the last, gaps included."""
    first = tensor.data_ptr()
    if tensor.is_contiguous():
        return first, first + tensor.nbytes
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * tensor.element_size()
