"""The operations of the C++ extension, `torch.ops.tomfisher_cpp`, behind the arguments of the operations here.

The extension takes contiguous tensors and the number of threads; what is not contiguous goes through a copy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)
from tomfisher.ops.cpp import masked_fill_mean, scatter, weight_sums  # noqa: F401  (register themselves)
from tomfisher.ops.dispatch import register
from tomfisher.ops.vectors import Span


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


@register("topk", "cpp")
@register("topk_summary", "cpp")
def select(
    flats: Sequence[Tensor], counts: Sequence[int], thresholds: Sequence[float] | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """One pass over each vector, which finds NaN and infinity as well."""
    contiguous = [flat.contiguous() for flat in flats]
    bounds = _float64(thresholds)
    return torch.ops.tomfisher_cpp.select(contiguous, counts, bounds, torch.get_num_threads())


@register("topk_across", "cpp")
def select_across(flats: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over all vectors."""
    contiguous = [flat.contiguous() for flat in flats]
    return torch.ops.tomfisher_cpp.select_across(contiguous, k, torch.get_num_threads())


@register("topk_stored", "cpp")
def select_stored(
    span: Span, k: int, thresholds: Sequence[float] | None
) -> tuple[Tensor, Tensor, Sequence[Tensor], int]:
    """One pass over a file, of which each thread holds a block.

    Raises:
        OSError: the file cannot be read.
    """
    path, bounds = os.fspath(span.path), _float64(thresholds)
    try:
        return torch.ops.tomfisher_cpp.select_file(
            path, span.offset, span.numel, span.dtype, k, bounds, torch.get_num_threads()
        )
    except RuntimeError as error:
        if "Cannot read" not in str(error):
            raise
        raise OSError(str(error)) from error


def _float64(thresholds: Sequence[float] | None) -> Tensor | None:
    return None if thresholds is None else torch.tensor(thresholds, dtype=torch.float64)
