"""Sums of whole tensors in float64, in an order that depends on nothing but their size.

A program adds up one chunk of one tensor: BLOCK lanes, CHUNK / BLOCK additions each, then a tree. A second
kernel adds up each tensor's chunks in the same manner. No atomics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tables
from .launch import FUSED, on_device
from .tables import COLUMNS, Rows, Table, locate, widen
from .variant import Variant

CHUNK = 1 << 15
BLOCK = 1 << 11
FOLD = 1 << 12
_WARPS = 8


@triton.jit(do_not_specialize=["rows"])
def sums_kernel(
    table,
    partial,
    rows,
    BITS: tl.constexpr,
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum and absolute sum of chunk `program_id` -> partial[2 · program_id + (0, 1)]."""
    program = tl.program_id(0).to(tl.int64)
    row = table + locate(table, program, rows) * COLUMNS
    weight = tl.load(row + 1).to(tl.pointer_type(BITS))
    if ALIGNED:
        weight = tl.multiple_of(weight, 16)
    size = tl.load(row + 2)
    start = (program - tl.load(row)) * CHUNK
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    absolute = tl.zeros((BLOCK,), tl.float64)
    if start + CHUNK <= size:  # no mask, and so wide loads, several under way
        for step in tl.static_range(0, CHUNK, BLOCK):
            value = widen(tl.load(weight + start + step + lanes), TYPE, tl.float64)
            total += value
            absolute += tl.abs(value)
    else:
        for step in range(0, CHUNK, BLOCK):
            place = start + step + lanes
            value = widen(tl.load(weight + place, mask=place < size, other=0), TYPE, tl.float64)
            total += value
            absolute += tl.abs(value)
    tl.store(partial + 2 * program, tl.sum(total, 0))
    tl.store(partial + 2 * program + 1, tl.sum(absolute, 0))


@triton.jit(do_not_specialize=["rows"])
def sums_without_kernel(
    table,
    partial,
    rows,
    BITS: tl.constexpr,
    TYPE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As `sums_kernel`; entries whose positions are in the row's ascending index vector count as zeros."""
    program = tl.program_id(0).to(tl.int64)
    row = table + locate(table, program, rows) * COLUMNS
    weight = tl.load(row + 1).to(tl.pointer_type(BITS))
    size = tl.load(row + 2)
    start = (program - tl.load(row)) * CHUNK
    index = tl.load(row + 4).to(tl.pointer_type(tl.int64))
    count = tl.load(row + 5)
    cursor = _first_not_before(index, count, start)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    absolute = tl.zeros((BLOCK,), tl.float64)
    for step in range(0, CHUNK, BLOCK):
        place = start + step + lanes
        bits = tl.load(weight + place, mask=place < size, other=0)
        end = _first_not_before(index, count, start + step + BLOCK)
        while cursor < end:
            bits = tl.where(place == tl.load(index + cursor), tl.zeros_like(bits), bits)
            cursor += 1
        value = widen(bits, TYPE, tl.float64)
        total += value
        absolute += tl.abs(value)
    tl.store(partial + 2 * program, tl.sum(total, 0))
    tl.store(partial + 2 * program + 1, tl.sum(absolute, 0))


@triton.jit
def _first_not_before(index, count, place):
    """How many of the ascending positions lie before `place`."""
    low = tl.zeros((), tl.int64)
    high = count
    while high - low > 0:
        middle = (low + high) // 2
        before = tl.load(index + middle) < place
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit
def fold_kernel(table, partial, out, LANES: tl.constexpr):
    """Add up the programs of row `program_id` -> out[2 · position + (0, 1)]."""
    row = table + tl.program_id(0) * COLUMNS
    first = tl.load(row)
    last = tl.load(row + COLUMNS)
    position = tl.load(row + 3)
    lanes = tl.arange(0, LANES)
    total = tl.zeros((LANES,), tl.float64)
    absolute = tl.zeros((LANES,), tl.float64)
    start = first
    while start < last:
        inside = start + lanes < last
        total += tl.load(partial + 2 * (start + lanes), mask=inside, other=0.0)
        absolute += tl.load(partial + 2 * (start + lanes) + 1, mask=inside, other=0.0)
        start += LANES
    tl.store(out + 2 * position, tl.sum(total, 0))
    tl.store(out + 2 * position + 1, tl.sum(absolute, 0))


def fold(table: Table, partial: Tensor, out: Tensor) -> None:
    """Sum the partial results of a launch per tensor.

    Args:
        table: of the launch that wrote `partial`.
        partial: float64 `[programs, 2]`.
        out: float64 `[n, 2]`; row `position` of each of the table's tensors is written.
    """
    fold_kernel[(table.rows,)](table.data, partial, out, LANES=FOLD, num_warps=_WARPS, **FUSED)


def weight_sums(weights: Sequence[Tensor]) -> Tensor:
    """Sum of all entries and of their absolute values, per tensor.

    Args:
        weights: float16, bfloat16, float32 or float64 on one device. A non-contiguous one is copied.

    Returns:
        float64 `[n, 2]` on that device.
    """
    dense = _dense(weights)
    sizes, addresses = tables.sizes(dense), tables.addresses(dense)
    out = torch.zeros((len(dense), 2), dtype=torch.float64, device=dense[0].device)
    with on_device(out):
        for dtype, at in tables.by_kind(dense):
            switches = {"ALIGNED": tables.aligned(addresses[at])}
            _launch(sums_kernel, dtype, Rows(sizes[at], at, addresses[at]), out, switches)
    return out


def sums_without(weights: Sequence[Tensor], indices: Sequence[Tensor]) -> Tensor:
    """The same sums without the entries at the given positions: these are not added and taken away again.

    Args:
        weights: as for `weight_sums`.
        indices: int64, ascending, one vector per weight.

    Returns:
        float64 `[n, 2]` on the weights' device.
    """
    dense, listed = _dense(weights), [index.contiguous() for index in indices]
    sizes, addresses = tables.sizes(dense), tables.addresses(dense)
    counts, places = tables.sizes(listed), tables.addresses(listed)
    out = torch.zeros((len(dense), 2), dtype=torch.float64, device=dense[0].device)
    with on_device(out):
        for dtype, at in tables.by_kind(dense):
            rows = Rows(sizes[at], at, addresses[at], places[at], counts[at])
            _launch(sums_without_kernel, dtype, rows, out, {})
    return out


def _dense(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight if weight.is_contiguous() else weight.detach().contiguous() for weight in weights]


def _launch(kernel: Any, dtype: torch.dtype, rows: Rows, out: Tensor, switches: dict[str, bool]) -> None:
    table = tables.build(rows, CHUNK, out.device)
    if not table.programs:
        return
    partial = torch.empty((table.programs, 2), dtype=torch.float64, device=out.device)
    constants = {"BITS": tables.bits_of(dtype), "TYPE": tables.type_of(dtype), **switches}
    kernel[(table.programs,)](
        table.data, partial, table.rows, **constants, CHUNK=CHUNK, BLOCK=BLOCK, num_warps=_WARPS, **FUSED
    )
    fold(table, partial, out)


def variants() -> list[Variant]:
    """Everything that is compiled."""
    found = []
    for dtype, name in tables.NAMES.items():
        found += [
            _variant(sums_kernel, name, dtype, {"ALIGNED": True}, "aligned"),
            _variant(sums_kernel, name, dtype, {"ALIGNED": False}, "unaligned"),
            _variant(sums_without_kernel, name, dtype, {}, ""),
        ]
    folding = Variant(
        kernel=fold_kernel,
        dtype="fp64",
        signature={"table": "*i64", "partial": "*fp64", "out": "*fp64", "LANES": "constexpr"},
        constexprs={"LANES": FOLD},
        num_warps=_WARPS,
        divisible_by_16=("table", "partial", "out"),
    )
    return [*found, folding]


def _variant(kernel: Any, name: str, dtype: torch.dtype, switches: dict[str, bool], label: str) -> Variant:
    constants = {"BITS": tables.bits_of(dtype), "TYPE": tables.type_of(dtype), **switches}
    constants = {**constants, "CHUNK": CHUNK, "BLOCK": BLOCK}
    return Variant(
        kernel=kernel,
        dtype=name,
        signature={
            "table": "*i64",
            "partial": "*fp64",
            "rows": "i32",
            **dict.fromkeys(constants, "constexpr"),
        },
        constexprs=constants,
        num_warps=_WARPS,
        label=label,
        divisible_by_16=("table", "partial"),
    )
