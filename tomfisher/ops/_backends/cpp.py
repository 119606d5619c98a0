"""The operations of the C++ extension, `torch.ops.tomfisher_cpp`, behind the arguments of the operations here.

The extension takes contiguous tensors and the number of threads; what is not contiguous goes through a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)
from tomfisher.ops.cpp import (  # noqa: F401  (register themselves)
    masked_fill_mean,
    scatter,
    summary,
    summary_stored,
    topk,
    topk_across,
    topk_stored,
    weight_sums,
)
from tomfisher.ops.dispatch import register


@register("square_accumulate_", "cpp")
def square_accumulate_(F_list: Sequence[Tensor], grad_list: Sequence[Tensor]) -> None:
    """All tensors at once."""
    contiguous = [F.contiguous() for F in F_list]
    torch.ops.tomfisher_cpp.square_accumulate_(
        contiguous, [gradient.contiguous() for gradient in grad_list], torch.get_num_threads()
    )
    for F, written in zip(F_list, contiguous, strict=True):
        if written is not F:
            F.copy_(written)


@register("squared_gradient_", "cpp")
def squared_gradient_(
    F: Tensor, grad_output: Tensor, input: Tensor, bounds: list[tuple[int, int]], targets: list[int] | None
) -> None:
    """All segments in one call."""
    torch.ops.tomfisher_cpp.squared_gradient_(
        F.unsqueeze(0) if targets is None else F,
        _rows(grad_output),
        _rows(input),
        [start for start, _ in bounds],
        [stop for _, stop in bounds],
        [0] * len(bounds) if targets is None else targets,
        torch.get_num_threads(),
    )


def _rows(operand: Tensor) -> Tensor:
    """The operand in a dtype that the extension multiplies, with the entries of a row side by side."""
    rows = operand.float() if operand.dtype not in (torch.float16, torch.bfloat16, torch.float32) else operand
    return rows if rows.shape[1] < 2 or rows.stride(1) == 1 else rows.contiguous()
