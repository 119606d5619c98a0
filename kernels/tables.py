"""Many tensors in one launch: a device table with one row per tensor, and how a program finds its row.

Tables are made column by column: a launch of hundreds of tensors costs the host a few operations on vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import interpreting, sent

COLUMNS = tl.constexpr(6)
# What a row holds: [first program, address, size, position, second address, third address or a length]. `size` is
# what is divided among the row's programs, `position` the tensor's place in the caller's list.

Column = Sequence[int] | np.ndarray

_BITS = {2: tl.int16, 4: tl.int32, 8: tl.int64}
_TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}


@triton.jit
def locate(table, program, rows):
    """Row that a program works for: the last whose first program is not after it."""
    low = 0
    high = rows
    while high - low > 1:
        middle = (low + high) // 2
        after = tl.load(table + middle * COLUMNS) > program
        high = tl.where(after, middle, high)
        low = tl.where(after, low, middle)
    return low


@triton.jit
def widen(bits, TYPE: tl.constexpr, WIDE: tl.constexpr):
    """The numbers behind integer bit patterns; bfloat16 by way of its float32 pattern, which is exact."""
    if tl.bfloat16 == TYPE:
        return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True).to(WIDE)
    else:
        return bits.to(TYPE, bitcast=True).to(WIDE)


class Rows(NamedTuple):
    """The tensors of a launch, a column an attribute: `[n]` integers, or one number for all.

    Attributes:
        sizes: numbers of entries to divide among programs.
        positions: the tensors' places in the caller's list.
        first: addresses.
        second: addresses.
        third: addresses, or lengths.
    """

    sizes: Column
    positions: Column
    first: Column
    second: Column | int = 0
    third: Column | int = 0


@dataclass(frozen=True)
class Table:
    """Rows on the device.

    Attributes:
        data: int64 `[rows + 1, COLUMNS]`; the last row holds only the number of programs.
        rows: number of tensors.
        programs: number of programs to start.
    """

    data: Tensor
    rows: int
    programs: int


def build(rows: Rows, per_program: int, device: torch.device) -> Table:
    """Lay out a launch whose programs take `per_program` entries of one tensor each, tensor after tensor.

    Raises:
        RuntimeError: the interpreter is on and the tensors are on a GPU.
    """
    if interpreting() and device.type == "cuda":
        raise RuntimeError(
            "TRITON_INTERPRET=1 runs kernels on the CPU, which cannot follow a table of GPU addresses. "
            "Pass CPU tensors, or unset the variable before triton is imported."
        )
    sizes = np.asarray(rows.sizes, np.int64)
    data = np.zeros((len(sizes) + 1, COLUMNS.value), np.int64)
    data[1:, 0] = (-(-sizes // per_program)).cumsum()
    for column, numbers in enumerate((rows.first, sizes, rows.positions, rows.second, rows.third), 1):
        data[:-1, column] = numbers
    return Table(sent(data, device), len(sizes), int(data[-1, 0]))


def by_kind(tensors: Iterable[Tensor]) -> list[tuple[torch.dtype, np.ndarray]]:
    """Positions of the tensors of each dtype: one launch works on one dtype."""
    dtypes = [tensor.dtype for tensor in tensors]
    return [(kind, np.flatnonzero([dtype == kind for dtype in dtypes])) for kind in dict.fromkeys(dtypes)]


def addresses(tensors: Sequence[Tensor]) -> np.ndarray:
    """Of the tensors' first entries, int64 `[n]`."""
    return np.fromiter(map(Tensor.data_ptr, tensors), np.int64, len(tensors))


def sizes(tensors: Sequence[Tensor]) -> np.ndarray:
    """Numbers of entries, int64 `[n]`."""
    return np.fromiter(map(Tensor.numel, tensors), np.int64, len(tensors))


def bits_of(dtype: torch.dtype) -> tl.dtype:
    """The integer type of a dtype's size: moving bit patterns keeps NaN payloads."""
    return _BITS[dtype.itemsize]


def type_of(dtype: torch.dtype) -> tl.dtype:
    """The Triton type of a dtype."""
    return _TYPES[dtype]


def aligned(*addresses: np.ndarray) -> bool:
    """Whether all are multiples of 16 bytes, so that vector loads may be used."""
    return not any((column % 16).any() for column in addresses)
