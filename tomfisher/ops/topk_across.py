"""`topk_across`: the exact k largest entries of several tensors together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import tomfisher.ops.reference.topk_across  # noqa: F401  (registers the definition)
from tomfisher.ops.dispatch import Impl, resolve
from tomfisher.ops.vectors import check_count, check_finite, labels_of, vectors_of


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
    values, owners, indices = _op(flats, k, impl)
    return TopKAcross(values, owners, indices, values[-1] if k else values.new_tensor(float("inf")))


@torch.library.custom_op("tomfisher::topk_across", mutates_args=())
def _op(flats: Sequence[Tensor], k: int, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    _, run = resolve("topk_across", impl, flats[0].device)
    owners, indices, status = run(flats, k)
    check_finite(labels_of(len(flats), False, "tensors"), flats, status)
    return _values(flats, owners, indices), owners, indices


@_op.register_fake
def _(flats: Sequence[Tensor], k: int, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    owners, indices = (flats[0].new_empty(k, dtype=torch.int64) for _ in range(2))
    return flats[0].new_empty(k), owners, indices


def _values(flats: Sequence[Tensor], owners: Tensor, indices: Tensor) -> Tensor:
    """The selected entries themselves, gathered tensor by tensor."""
    by_owner = torch.argsort(owners, stable=True)
    counts = torch.bincount(owners, minlength=len(flats)).tolist()
    values = flats[0].new_empty(len(owners))
    for flat, chosen in zip(flats, by_owner.split(counts), strict=True):
        if len(chosen):
            values[chosen] = flat[indices[chosen]]
    return values
