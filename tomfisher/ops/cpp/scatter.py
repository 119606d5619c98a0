"""`scatter_` by the C++ extension, and the flat views that it and `masked_fill_mean_` write through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)
from tomfisher.ops.dispatch import register


@register("scatter_", "cpp")
def scatter_cpp(weights: Sequence[Tensor], indices: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write bit patterns to flat positions of all weights at once."""
    spans = [in_memory(weight, index) for weight, index in zip(weights, indices, strict=True)]
    torch.ops.tomfisher_cpp.scatter_(
        [span for span, _ in spans],
        [position for _, position in spans],
        [value.contiguous() for value in values],
        torch.get_num_threads(),
    )


def in_memory(weight: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """A vector over the memory of `weight`, and where in it the flat row-major positions `index` are.

    Args:
        weight: any shape and strides.
        index: int64 `[k]`, in range.

    Returns:
        The vector, without a copy (it also covers gaps between entries), and int64 `[k]`.
    """
    if weight.is_contiguous():
        return weight, index.contiguous()
    weight = weight.detach()
    if not weight.numel():
        return weight.reshape(-1), index
    extent = 1 + sum((n - 1) * step for n, step in zip(weight.shape, weight.stride(), strict=True))
    coordinates = torch.unravel_index(index, weight.shape)
    position = torch.zeros_like(index)
    for coordinate, step in zip(coordinates, weight.stride(), strict=True):
        position += coordinate * step
    return weight.as_strided((extent,), (1,)), position
