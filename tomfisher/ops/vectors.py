"""What is put in an order: tensors as vectors of one dtype on one device, or the bytes of one in a file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tomfisher.ops.checks import DTYPES


class Span(NamedTuple):
    """The bytes of one tensor in a file: row-major, little-endian, without gaps.

    Attributes:
        path: the file.
        offset: of the first byte, from the beginning of the file.
        shape: the tensor's.
        dtype: the tensor's.
    """

    path: str | os.PathLike[str]
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def mapped(self) -> Tensor:
        """The entries as a vector over the file, whose bytes are read when they are looked at."""
        if self.numel == 0:
            return torch.empty(0, dtype=self.dtype)
        size = self.numel * self.dtype.itemsize
        data = np.memmap(self.path, dtype=np.uint8, mode="c", offset=self.offset, shape=(size,))
        return torch.frombuffer(data, dtype=self.dtype)


def check_span(span: Span) -> None:
    """Refuse a span whose dtype has no order here or that does not lie within its file.

    Raises:
        FileNotFoundError: no such file.
        TypeError: another dtype than `DTYPES`.
        ValueError: the span does not lie within the file.
    """
    if span.dtype not in DTYPES:
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {span.dtype}.")
    size = os.stat(span.path).st_size
    if span.offset < 0 or span.numel < 0 or span.offset + span.numel * span.dtype.itemsize > size:
        raise ValueError(
            f"{span.numel} entries of {span.dtype} from byte {span.offset} do not lie within "
            f"{os.fspath(span.path)} ({size} bytes)."
        )


def vectors_of(
    values: Tensor | Sequence[Tensor], way_out: str, what: str = "values"
) -> tuple[list[Tensor], bool]:
    """One tensor or several as detached vectors that can be put in an order.

    Args:
        values: a tensor, or a list of them.
        way_out: what to do about tensors that differ; `{}` becomes "dtype" or "device".
        what: the argument's name, for messages.

    Returns:
        The vectors, row-major (copied where a tensor is not contiguous), and whether `values` was one tensor.

    Raises:
        TypeError: no tensor, a dtype without an order here, or dtypes that differ.
        ValueError: devices that differ.
    """
    single = isinstance(values, Tensor)
    tensors = [values] if isinstance(values, Tensor) else list(values)
    labels = labels_of(len(tensors), single, what)
    flats = [_flattened(label, tensor) for label, tensor in zip(labels, tensors, strict=True)]
    for kind, kinds, error in (
        ("dtype", {str(flat.dtype) for flat in flats}, TypeError),
        ("device", {str(flat.device) for flat in flats}, ValueError),
    ):
        if len(kinds) > 1:
            raise error(f"{what} must share one {kind}, got {sorted(kinds)}. {way_out.format(kind)}")
    return flats, single


def labels_of(count: int, single: bool, what: str = "values") -> list[str]:
    """What messages call each of `count` tensors."""
    return [what] if single else [f"{what}[{i}]" for i in range(count)]


def _flattened(label: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{label} must be a tensor, got {type(tensor).__name__}.")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{label} must be float16, bfloat16, float32 or float64, got {tensor.dtype}.")
    return tensor.detach().reshape(-1)


def check_counts(k: int | Sequence[int], flats: Sequence[Tensor], single: bool) -> list[int]:
    """How many to select from each vector, once every number is known to be possible.

    Args:
        k: one number for all vectors, or one for each.
        flats: the vectors.
        single: whether the caller gave one tensor.

    Raises:
        TypeError: no integer.
        ValueError: another number of counts than vectors, or a count out of range.
    """
    if not isinstance(k, (int, Sequence)):
        raise TypeError(f"k must be an integer, or one per tensor, got {k!r}.")
    counts = [k] * len(flats) if isinstance(k, int) else list(k)
    if len(counts) != len(flats):
        raise ValueError(f"k must be one number or one per tensor, got {len(counts)} for {len(flats)}.")
    for label, flat, count in zip(labels_of(len(flats), single), flats, counts, strict=True):
        check_count(count, flat.numel(), label)
    return counts


def check_count(k: object, numel: int, label: str) -> int:
    """k, unless it is no integer from 0 to `numel`, the number of entries of `label`."""
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"k must be an integer, got {k!r} for {label}.")
    if not 0 <= k <= numel:
        raise ValueError(f"k must be between 0 and {numel} (the entries of {label}), got {k}.")
    return k


def first_non_finite(flats: Sequence[Tensor]) -> Tensor:
    """For each vector the first position of NaN or infinity, -1 without any; int64 on the vectors' device."""
    return torch.tensor([_first_non_finite(flat) for flat in flats], device=flats[0].device)


def _first_non_finite(flat: Tensor) -> int:
    if flat.numel() == 0 or all(torch.isfinite(bound) for bound in torch.aminmax(flat)):
        return -1
    return int(torch.isfinite(flat).logical_not().nonzero()[0])


def check_finite(labels: Sequence[str], flats: Sequence[Tensor], status: Tensor) -> None:
    """Refuse the first tensor that an implementation found a NaN or an infinity in.

    Args:
        labels: what to call each tensor.
        flats: the tensors as vectors.
        status: as `first_non_finite` gives it.

    Raises:
        ValueError: a position is not -1.
    """
    for label, flat, first in zip(labels, flats, status.tolist(), strict=True):
        if first >= 0:
            raise ValueError(
                f"{label} must be finite (it is put in an order), got {flat[first].item()} at flat index {first}."
            )
