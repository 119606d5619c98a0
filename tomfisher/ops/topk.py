"""`topk`: the exact k largest entries, in an order that is a pure function of the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

import tomfisher.ops.reference.topk  # noqa: F401  (registers the definition)
from tomfisher.ops.dispatch import Impl, resolve
from tomfisher.ops.dtypes import DTYPES


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
        values: one tensor of any shape, or several on one device; float16, bfloat16, float32 or float64.
            A non-contiguous tensor is copied. Each of several is selected on its own, so their dtypes may differ
            (`topk_across`, which compares them with each other, refuses that).
        k: how many, 0 to the number of entries; for several tensors one number for all or one for each.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        A `TopK` on the values' device, or a list of them.

    Raises:
        TypeError: a tensor has another dtype, or k is no integer.
        ValueError: NaN or infinity among the values, k out of range, lengths or devices that differ.
    """
    single = isinstance(values, Tensor)
    tensors = [values] if isinstance(values, Tensor) else list(values)
    if not isinstance(k, (int, Sequence)):
        raise TypeError(f"k must be an integer, or one per tensor, got {k!r}.")
    counts = [k] * len(tensors) if isinstance(k, int) else list(k)
    if len(counts) != len(tensors):
        raise ValueError(f"k must be one number or one per tensor, got {len(counts)} for {len(tensors)}.")
    labels = _labels(len(tensors), single)
    flats = [_checked(label, t, n) for label, t, n in zip(labels, tensors, counts, strict=True)]
    if len({flat.device for flat in flats}) > 1:
        devices = sorted({str(flat.device) for flat in flats})
        raise ValueError(f"values must be on one device, got {devices}. Call topk once per device.")
    if not flats:
        return []
    found = _op(flats, counts, impl, single)
    results = [_result(flat, indices) for flat, indices in zip(flats, found, strict=True)]
    return results[0] if single else results


@torch.library.custom_op("tomfisher::topk", mutates_args=())
def _op(flats: Sequence[Tensor], counts: Sequence[int], impl: str, single: bool) -> list[Tensor]:
    _, run = resolve("topk", impl, flats[0].device)
    indices, status = run(flats, counts)
    # here and not in `topk`, whose tensors may be fake: a compiled call refuses bad values as well
    check_finite(_labels(len(flats), single), flats, status)
    return indices


@_op.register_fake
def _(flats: Sequence[Tensor], counts: Sequence[int], impl: str, single: bool) -> list[Tensor]:
    return [flat.new_empty(k, dtype=torch.int64) for flat, k in zip(flats, counts, strict=True)]


def _labels(count: int, single: bool) -> list[str]:
    return ["values"] if single else [f"values[{i}]" for i in range(count)]


def check_finite(labels: Sequence[str], flats: Sequence[Tensor], status: Tensor) -> None:
    """Refuse the first tensor that an implementation found a NaN or an infinity in.

    Args:
        labels: what to call each tensor.
        flats: the tensors as vectors.
        status: int64, -1 or the first position without a finite value, one per tensor.

    Raises:
        ValueError: a position is not -1.
    """
    for label, flat, first in zip(labels, flats, status.tolist(), strict=True):
        if first >= 0:
            raise ValueError(
                f"{label} must be finite (it is put in an order), got {flat[first].item()} at flat index {first}."
            )


def flattened(label: str, tensor: Tensor) -> Tensor:
    """The tensor as a detached vector, once its dtype is known to have an order here.

    Args:
        label: what to call it.
        tensor: any shape; copied if it is not contiguous.

    Raises:
        TypeError: it has another dtype than `DTYPES`.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{label} must be a tensor, got {type(tensor).__name__}.")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{label} must be float16, bfloat16, float32 or float64, got {tensor.dtype}.")
    return tensor.detach().reshape(-1)


def _checked(label: str, tensor: Tensor, k: int) -> Tensor:
    """The tensor as a detached vector, once it and k are known to be usable."""
    flat = flattened(label, tensor)
    check_count(k, flat.numel(), label)
    return flat


def check_count(k: int, numel: int, label: str) -> None:
    """Refuse a k that is no integer from 0 to `numel`, the number of entries of `label`."""
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"k must be an integer, got {k!r} for {label}.")
    if not 0 <= k <= numel:
        raise ValueError(f"k must be between 0 and {numel} (the entries of {label}), got {k}.")


def _result(flat: Tensor, indices: Tensor) -> TopK:
    values = flat[indices]
    return TopK(values, indices, values[-1] if len(values) else flat.new_tensor(float("inf")))
