"""Many tensors in one launch: a device table with one row per tensor, and how a program finds its row."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
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


class Row(NamedTuple):
    """One tensor's part of a launch.

    Attributes:
        size: number of entries to divide among programs.
        position: the tensor's place in the caller's list.
        first: address.
        second: address.
        third: address, or a length.
    """

    size: int
    position: int
    first: int
    second: int = 0
    third: int = 0


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


def build(rows: Sequence[Row], per_program: int, device: torch.device) -> Table:
    """Lay out a launch whose programs take `per_program` entries of one tensor each, tensor after tensor.

    Raises:
        RuntimeError: the interpreter is on and the tensors are on a GPU.
    """
    if interpreting() and device.type == "cuda":
        raise RuntimeError(
            "TRITON_INTERPRET=1 runs kernels on the CPU, which cannot follow a table of GPU addresses. "
            "Pass CPU tensors, or unset the variable before triton is imported."
        )
    blocks = [-(-row.size // per_program) for row in rows]
    starts = list(itertools.accumulate(blocks, initial=0))
    lines = [
        (start, row.first, row.size, row.position, row.second, row.third)
        for start, row in zip(starts, rows, strict=False)
    ]
    data = np.array([*lines, (starts[-1], 0, 0, 0, 0, 0)], dtype=np.int64)
    return Table(sent(data, device), len(rows), starts[-1])


def by_kind(tensors: Iterable[Tensor]) -> Iterator[tuple[torch.dtype, list[int]]]:
    """Positions of the tensors of each dtype: one launch works on one dtype."""
    groups: dict[torch.dtype, list[int]] = defaultdict(list)
    for position, tensor in enumerate(tensors):
        groups[tensor.dtype].append(position)
    yield from groups.items()


def bits_of(dtype: torch.dtype) -> tl.dtype:
    """The integer type of a dtype's size: moving bit patterns keeps NaN payloads."""
    return _BITS[dtype.itemsize]


def type_of(dtype: torch.dtype) -> tl.dtype:
    """The Triton type of a dtype."""
    return _TYPES[dtype]


def aligned(tensors: Iterable[Tensor]) -> bool:
    """Whether all start at a multiple of 16 bytes, so that vector loads may be used."""
    return all(tensor.data_ptr() % 16 == 0 for tensor in tensors)
