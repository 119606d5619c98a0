"""`topk`: the exact k largest entries, in an order that is a pure function of the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

import tomfisher.ops.reference.topk  # noqa: F401  (registers the definition)
from tomfisher.ops.dispatch import Impl, resolve
from tomfisher.ops.vectors import check_counts, check_finite, labels_of, vectors_of


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


@overload
def topk(values: Tensor, k: int, impl: Impl = "auto") -> TopK: ...


@overload
def topk(values: Sequence[Tensor], k: int | Sequence[int], impl: Impl = "auto") -> list[TopK]: ...


def topk(values: Tensor | Sequence[Tensor], k: int | Sequence[int], impl: Impl = "auto") -> TopK | list[TopK]:
    """Select the k largest entries, larger value first, then lower flat index (-0.0 equals 0.0).

    Equivalent PyTorch::

        flat = values.flatten()
        indices = torch.sort(flat, descending=True, stable=True).indices[:k]
        TopK(flat[indices], indices, flat[indices][-1])

    Args:
        values: one tensor of any shape, or several of one dtype on one device, each selected on its own
            (`topk_across` compares them with each other); float16, bfloat16, float32 or float64. A non-contiguous
            tensor is copied.
        k: how many, 0 to the number of entries; for several tensors one number for all or one for each.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        A `TopK` on the values' device, or a list of them.

    Raises:
        TypeError: a tensor has another dtype, dtypes differ, or k is no integer.
        ValueError: NaN or infinity among the values, k out of range, lengths or devices that differ.
    """
    flats, single = vectors_of(values, "Call topk once per {}.")
    counts = check_counts(k, flats, single)
    if not flats:
        return []
    found = _op(flats, counts, impl, single)
    results = [as_topk(flat[indices], indices) for flat, indices in zip(flats, found, strict=True)]
    return results[0] if single else results


@torch.library.custom_op("tomfisher::topk", mutates_args=())
def _op(flats: Sequence[Tensor], counts: Sequence[int], impl: str, single: bool) -> list[Tensor]:
    _, run = resolve("topk", impl, flats[0].device)
    indices, status = run(flats, counts)
    # here and not in `topk`, whose tensors may be fake: a compiled call refuses bad values as well
    check_finite(labels_of(len(flats), single), flats, status)
    return indices


@_op.register_fake
def _(flats: Sequence[Tensor], counts: Sequence[int], impl: str, single: bool) -> list[Tensor]:
    return [flat.new_empty(k, dtype=torch.int64) for flat, k in zip(flats, counts, strict=True)]


def as_topk(values: Tensor, indices: Tensor) -> TopK:
    """The result from the selected values and their positions."""
    return TopK(values, indices, values[-1] if len(values) else values.new_tensor(float("inf")))
