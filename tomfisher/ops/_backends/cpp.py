"""The operations of the C++ extension, `torch.ops.tomfisher_cpp`, behind the arguments of the operations here.

The extension takes contiguous tensors and the number of threads; what is not contiguous goes through a copy.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)
from tomfisher.ops.dispatch import register
from tomfisher.ops.entries import gather_one_by_one
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


@register("weight_sums", "cpp")
def weight_sums(weights: Sequence[Tensor]) -> Tensor:
    """Sum and sum of absolute values of each tensor, float64 `[n, 2]`; a non-contiguous one is copied."""
    contiguous = [weight.contiguous() for weight in weights]
    return torch.ops.tomfisher_cpp.weight_sums(contiguous, torch.get_num_threads())


@register("masked_fill_mean_", "cpp")
def masked_fill_mean_(
    weights: Sequence[Tensor], indices: Sequence[Tensor], undo: Sequence[Tensor], sums: Tensor | None
) -> Tensor:
    """Fill each index with the mean of the other entries; the old values go to `undo`.

    A non-contiguous weight is filled as a copy, and the filled entries are then written back.

    Returns:
        float64 `[n]`: the means before they are rounded, 0 where nothing is masked. If one is not finite, nothing
        was written.
    """
    known, threads = None if sums is None else sums.contiguous(), torch.get_num_threads()
    if all(map(Tensor.is_contiguous, itertools.chain(weights, indices, undo))):
        return torch.ops.tomfisher_cpp.masked_fill_mean_(weights, indices, undo, known, threads)
    contiguous = [weight.contiguous() for weight in weights]
    positions = [index.contiguous() for index in indices]
    logs = [log.contiguous() for log in undo]
    means = torch.ops.tomfisher_cpp.masked_fill_mean_(contiguous, positions, logs, known, threads)
    if not all(map(math.isfinite, means.tolist())):
        return means
    try:
        _write_back(weights, contiguous, indices)
        for log, copy in zip(undo, logs, strict=True):
            if copy is not log:
                log.copy_(copy)
    except BaseException:
        scatter_(weights, indices, logs)
        raise
    return means


def _write_back(weights: Sequence[Tensor], contiguous: Sequence[Tensor], indices: Sequence[Tensor]) -> None:
    copied = [
        i for i, (weight, copy) in enumerate(zip(weights, contiguous, strict=True)) if copy is not weight
    ]
    if copied:
        filled = [contiguous[i].view(-1)[indices[i]] for i in copied]
        scatter_([weights[i] for i in copied], [indices[i] for i in copied], filled)


@register("scatter_", "cpp")
def scatter_(weights: Sequence[Tensor], indices: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write bit patterns to flat positions of all weights at once."""
    spans = [_in_memory(weight, index) for weight, index in zip(weights, indices, strict=True)]
    torch.ops.tomfisher_cpp.scatter_(
        [span for span, _ in spans],
        [position for _, position in spans],
        [value.contiguous() for value in values],
        torch.get_num_threads(),
    )


def _in_memory(weight: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
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


@register("gather_entries", "cpp")
def gather_entries(weights: Sequence[Tensor], index: Tensor, counts: Sequence[int]) -> Tensor:
    """The entries as they stand there; of tensors with gaps one by one."""
    if not all(map(Tensor.is_contiguous, weights)):
        return gather_one_by_one(weights, index, counts)
    values = weights[0].new_empty(index.numel())
    torch.ops.tomfisher_cpp.gather_entries(weights, index, counts, values, torch.get_num_threads())
    return values


@register("put_entries", "cpp")
def put_entries(weights: Sequence[Tensor], index: Tensor, counts: Sequence[int], values: Tensor) -> None:
    """Write bit patterns; to tensors with gaps by lists."""
    if not all(map(Tensor.is_contiguous, weights)):
        return scatter_(weights, index.split(counts), values.split(counts))
    torch.ops.tomfisher_cpp.put_entries(weights, index, counts, values, torch.get_num_threads())


@register("fill_entries", "cpp")
def fill_entries(
    weights: Sequence[Tensor], index: Tensor, counts: Sequence[int], undo: Tensor, sums: Tensor
) -> Tensor:
    """Fill with the mean of the other entries; tensors with gaps by lists."""
    if not all(map(Tensor.is_contiguous, weights)):
        return masked_fill_mean_(weights, index.split(counts), undo.split(counts), sums)
    threads = torch.get_num_threads()
    return torch.ops.tomfisher_cpp.fill_entries(weights, index, counts, undo, sums.contiguous(), threads)
