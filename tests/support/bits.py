"""Comparison bit by bit: NaN payloads and the sign of zero count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """The bit patterns of a tensor as integers of its shape, in the same memory."""
    return tensor.detach().view(INTEGERS[tensor.element_size()])


def same_bits(
    left: Sequence[Tensor] | Mapping[str, Tensor], right: Sequence[Tensor] | Mapping[str, Tensor]
) -> bool:
    """Whether two lists or mappings hold tensors of the same dtypes, shapes and bits."""
    if isinstance(left, Mapping):
        assert isinstance(right, Mapping)
        return left.keys() == right.keys() and same_bits(list(left.values()), [right[name] for name in left])
    return len(left) == len(right) and all(
        a.dtype == b.dtype and torch.equal(bits(a), bits(b)) for a, b in zip(left, right, strict=True)
    )


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter, tied ones under each of their names, and of every buffer."""
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> Tensor:
    """Every bit pattern may occur: NaN payloads, infinities, denormals, both zeros."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).view(shape).to(device)
