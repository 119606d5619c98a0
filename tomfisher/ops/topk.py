"""`topk`, `topk_across`, `topk_summary`: the exact k largest entries, in an order that depends on the values alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

from tomfisher.ops.dispatch import Impl, register, resolve
from tomfisher.ops.select import Pass, indices_of_largest, select
from tomfisher.ops.summary import Summary, as_summary
from tomfisher.ops.vectors import Span, check_count, check_finite, first_non_finite, labels_of, vectors_of


class TopK(NamedTuple):
    """The k largest entries of one tensor.

    Attributes:
        values: `[k]`, the input's dtype, largest first.
        indices: `[k]` int64, flat row-major positions of `values`; among equal values the lower comes first.
        threshold: 0-dimensional, the input's dtype: the smallest selected value (+inf when k is 0).
    """

    values: Tensor
    indices: Tensor
    threshold: Tensor


class TopKSummary(NamedTuple):
    """The k largest entries of one tensor, and what all of its entries are like.

    Attributes:
        top: as `topk` gives it.
        summary: as `summary` gives it.
    """

    top: TopK
    summary: Summary


class TopKAcross(NamedTuple):
    """The k largest entries of a list of tensors.

    Attributes:
        values: `[k]`, the tensors' dtype, largest first.
        owners: `[k]` int64, which tensor each entry lies in; among equal values the earlier tensor comes first.
        indices: `[k]` int64, flat row-major position there; in one tensor the lower of equal values comes first.
        threshold: 0-dimensional, the tensors' dtype: the smallest selected value (+inf when k is 0).
    """

    values: Tensor
    owners: Tensor
    indices: Tensor
    threshold: Tensor


@overload
def topk(values: Tensor | Span, k: int, impl: Impl = "auto") -> TopK: ...


@overload
def topk(values: Sequence[Tensor], k: int | Sequence[int], impl: Impl = "auto") -> list[TopK]: ...


def topk(
    values: Tensor | Span | Sequence[Tensor], k: int | Sequence[int], impl: Impl = "auto"
) -> TopK | list[TopK]:
    """Select the k largest entries, larger value first, then lower flat index (-0.0 equals 0.0).

    Equivalent PyTorch::

        flat = values.flatten()
        indices = torch.sort(flat, descending=True, stable=True).indices[:k]
        TopK(flat[indices], indices, flat[indices][-1])

    Args:
        values: one tensor of any shape, or several of one dtype on one device, each selected on its own
            (`topk_across` compares them with each other); float16, bfloat16, float32 or float64. A non-contiguous
            tensor is copied. A `Span` stays in its file: the C++ implementation reads blocks of 1 MiB on every
            thread, so that memory grows with k and not with the file; -0.0 comes back as 0.0.
        k: how many, 0 to the number of entries; for several tensors one number for all or one for each.
        impl: "auto", "triton", "cpp" or "reference"; of a span no "triton".

    Returns:
        A `TopK` on the values' device, or a list of them.

    Raises:
        FileNotFoundError: no such file.
        TypeError: a tensor has another dtype, dtypes differ, or k is no integer.
        ValueError: NaN or infinity among the values, k out of range, lengths or devices that differ, or a span that
            does not lie within its file.
    """
    passes, single = select(values, k, None, impl, "topk")
    results = [_top(selected) for selected in passes]
    return results[0] if single else results


@overload
def topk_summary(
    values: Tensor | Span, k: int, thresholds: Sequence[float] = (), impl: Impl = "auto"
) -> TopKSummary: ...


@overload
def topk_summary(
    values: Sequence[Tensor],
    k: int | Sequence[int],
    thresholds: Sequence[float] = (),
    impl: Impl = "auto",
) -> list[TopKSummary]: ...


def topk_summary(
    values: Tensor | Span | Sequence[Tensor],
    k: int | Sequence[int],
    thresholds: Sequence[float] = (),
    impl: Impl = "auto",
) -> TopKSummary | list[TopKSummary]:
    """Select the k largest entries and count all of them by size, exactly.

    Equivalent PyTorch::

        TopKSummary(topk(values, k), summary(values, thresholds))

    The C++ implementation counts each block of the values while the selection has it in the cache.

    Args:
        values: as for `topk`.
        k: as for `topk`.
        thresholds: numbers to count the entries above, in any order; not rounded to the values' dtype.
        impl: "auto", "cpp" or "reference".

    Returns:
        A `TopKSummary` on the values' device, or a list of them.

    Raises:
        FileNotFoundError: no such file.
        TypeError: as for `topk`.
        ValueError: as for `topk`, or NaN among the thresholds.
    """
    passes, single = select(values, k, thresholds, impl, "topk_summary")
    results = [TopKSummary(_top(selected), as_summary(selected)) for selected in passes]
    return results[0] if single else results


def topk_across(tensors: Sequence[Tensor], k: int, impl: Impl = "auto") -> TopKAcross:
    """Select the k largest entries of all tensors: larger value, earlier tensor, lower flat index first.

    Equivalent PyTorch::

        flat = torch.cat([tensor.flatten() for tensor in tensors])
        place = torch.sort(flat, descending=True, stable=True).indices[:k]
        ends = torch.tensor([tensor.numel() for tensor in tensors]).cumsum(0)
        owners = torch.searchsorted(ends, place, right=True)

    Args:
        tensors: at least one, any shapes, one device and one of float16, bfloat16, float32 and float64. A
            non-contiguous tensor is copied.
        k: how many, 0 to the number of all entries.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        A `TopKAcross` on the tensors' device.

    Raises:
        TypeError: dtypes differ or have no order here, or k is no integer.
        ValueError: no tensor, NaN or infinity among the values, k out of range, or devices that differ.
    """
    flats, _ = vectors_of(list(tensors), "Convert them first.", "tensors")
    if not flats:
        raise ValueError("tensors must hold at least one tensor, got none.")
    check_count(k, sum(flat.numel() for flat in flats), "all tensors")
    values, owners, indices = _across(flats, k, impl)
    return TopKAcross(values, owners, indices, _threshold(values))


def _top(selected: Pass) -> TopK:
    return TopK(selected.values, selected.indices, _threshold(selected.values))


def _threshold(values: Tensor) -> Tensor:
    return values[-1] if len(values) else values.new_tensor(float("inf"))


@torch.library.custom_op("tomfisher::topk_across", mutates_args=())
def _across(flats: Sequence[Tensor], k: int, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    _, run = resolve("topk_across", impl, flats[0].device)
    owners, indices, status = run(flats, k)
    check_finite(labels_of(len(flats), False, "tensors"), flats, status)
    return _gathered(flats, owners, indices), owners, indices


@_across.register_fake
def _(flats: Sequence[Tensor], k: int, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    owners, indices = (flats[0].new_empty(k, dtype=torch.int64) for _ in range(2))
    return flats[0].new_empty(k), owners, indices


def _gathered(flats: Sequence[Tensor], owners: Tensor, indices: Tensor) -> Tensor:
    """The selected entries themselves, gathered tensor by tensor."""
    by_owner = torch.argsort(owners, stable=True)
    counts = torch.bincount(owners, minlength=len(flats)).tolist()
    values = flats[0].new_empty(len(owners))
    for flat, chosen in zip(flats, by_owner.split(counts), strict=True):
        if len(chosen):
            values[chosen] = flat[indices[chosen]]
    return values


@register("topk_across", "reference")
def _across_reference(flats: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The definition: each tensor's own largest entries, merged.

    Args:
        flats: at least one vector, one dtype, one device.
        k: 0 to the number of all entries.

    Returns:
        `(owners, indices, status)`: which vector each entry lies in and its position there, int64 `[k]`; and
        `first_non_finite`, where owners and indices mean nothing unless it is -1.
    """
    tops = [indices_of_largest(flat, min(k, flat.numel())) for flat in flats]
    values = torch.cat([flat[top] for flat, top in zip(flats, tops, strict=True)])
    owners = torch.repeat_interleave(torch.tensor([len(top) for top in tops], device=values.device))
    # the parts follow each other in the order of ties, and a stable sort keeps it
    order = torch.sort(values + 0.0, descending=True, stable=True).indices[:k]
    return owners[order], torch.cat(tops)[order], first_non_finite(flats)
