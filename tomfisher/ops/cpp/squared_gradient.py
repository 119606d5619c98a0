"""`squared_gradient_` by the C++ extension."""

from __future__ import annotations

import torch
from torch import Tensor

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)
from tomfisher.ops.dispatch import register

_READ_AS_THEY_ARE = (torch.float16, torch.bfloat16, torch.float32)


@register("squared_gradient_", "cpp")
def squared_gradient_cpp(
    F: Tensor, grad_output: Tensor, input: Tensor, bounds: list[tuple[int, int]], targets: list[int] | None
) -> None:
    """Add the squared weight gradient of every segment to F; arguments as for the reference."""
    slices = F.unsqueeze(0) if targets is None else F
    torch.ops.tomfisher_cpp.squared_gradient_(
        slices,
        _rows(grad_output),
        _rows(input),
        [start for start, _ in bounds],
        [stop for _, stop in bounds],
        [0] * len(bounds) if targets is None else targets,
        torch.get_num_threads(),
    )


def _rows(operand: Tensor) -> Tensor:
    """The operand with the entries of a row side by side, in a format that the extension multiplies."""
    rows = operand if operand.dtype in _READ_AS_THEY_ARE else operand.float()
    return rows if rows.shape[1] < 2 or rows.stride(1) == 1 else rows.contiguous()
