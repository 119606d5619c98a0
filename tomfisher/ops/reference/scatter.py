"""Definition of `scatter_`, and the reading that undoes it: both move bit patterns, not numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tomfisher.ops.dispatch import register

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


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
