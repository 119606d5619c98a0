"""Writing values to positions of many tensors in one launch per dtype, as bit patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tables
from .launch import FUSED, on_device, require_device
from .tables import COLUMNS, Rows, Table, locate
from .variant import Variant

ENTRIES = 1 << 9  # per program
_WARPS = 4


@triton.jit(do_not_specialize=["rows"])
def scatter_kernel(table, rows, BITS: tl.constexpr, EACH: tl.constexpr, ENTRIES: tl.constexpr):
    """weight[place[i]] = value[i], or value[0] for all i unless EACH."""
    program = tl.program_id(0).to(tl.int64)
    row = table + locate(table, program, rows) * COLUMNS
    weight = tl.load(row + 1).to(tl.pointer_type(BITS))
    place = tl.load(row + 4).to(tl.pointer_type(tl.int64))
    value = tl.load(row + 5).to(tl.pointer_type(BITS))
    i = (program - tl.load(row)) * ENTRIES + tl.arange(0, ENTRIES)
    inside = i < tl.load(row + 2)
    bits = tl.load(value + i, mask=inside, other=0) if EACH else tl.load(value)
    tl.store(weight + tl.load(place + i, mask=inside, other=0), bits, mask=inside)


def scatter_(weights: Sequence[Tensor], indices: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write `values[i]` to the flat row-major positions `indices[i]` of `weights[i]`.

    Args:
        weights: float16, bfloat16, float32 or float64 on one device, any strides.
        indices: int64 `[k]`, in range, no repetitions.
        values: `[k]` of the weights' dtypes.
    """
    require_device(weights[0])
    places = [memory_places(weight, index) for weight, index in zip(weights, indices, strict=True)]
    sources = [value.contiguous() for value in values]
    for launch in prepare(found(weights, places), tables.addresses(sources), weights[0].device):
        launch.run()


@dataclass(frozen=True)
class Launch:
    """A write to the tensors of one dtype, with its table on the device already.

    Attributes:
        dtype: of the tensors.
        each: whether there is a value per position; otherwise one per tensor.
        table: rows of (weight, places, values).
    """

    dtype: torch.dtype
    each: bool
    table: Table

    def run(self) -> None:
        """Start it; what the table points to must still be there."""
        if not self.table.programs:
            return
        with on_device(self.table.data):
            scatter_kernel[(self.table.programs,)](
                self.table.data,
                self.table.rows,
                BITS=tables.bits_of(self.dtype),
                EACH=self.each,
                ENTRIES=ENTRIES,
                num_warps=_WARPS,
                **FUSED,
            )


class Found(NamedTuple):
    """Entries of tensors, as tables name them.

    Attributes:
        kinds: positions of the tensors of each dtype.
        weights: the tensors' addresses, int64 `[n]`.
        places: addresses of their `memory_places`, which must stay where they are.
        counts: how many entries each has.
    """

    kinds: list[tuple[torch.dtype, np.ndarray]]
    weights: np.ndarray
    places: np.ndarray
    counts: np.ndarray


def found(weights: Sequence[Tensor], places: Sequence[Tensor]) -> Found:
    """The entries at `memory_places` of tensors on one device."""
    return Found(
        tables.by_kind(weights), tables.addresses(weights), tables.addresses(places), tables.sizes(places)
    )


def prepare(entries: Found, sources: np.ndarray, device: torch.device, each: bool = True) -> list[Launch]:
    """Everything that a write allocates; what it returns only starts kernels.

    Args:
        entries: what is written.
        sources: address of each tensor's values, int64 `[n]`.
        device: of the tensors.
        each: whether there is a value per position; otherwise one per tensor.

    Returns:
        One launch per dtype.
    """
    launches = []
    for dtype, at in entries.kinds:
        rows = Rows(entries.counts[at], at, entries.weights[at], entries.places[at], sources[at])
        launches.append(Launch(dtype, each, tables.build(rows, ENTRIES, device)))
    return launches


def memory_places(weight: Tensor, index: Tensor) -> Tensor:
    """Distance in entries of each flat row-major position from the first entry of a tensor in memory.

    Args:
        weight: any strides.
        index: int64 `[k]`, in range.

    Returns:
        int64 `[k]`, contiguous.
    """
    if weight.is_contiguous():
        return index.contiguous()
    places = torch.zeros_like(index, memory_format=torch.contiguous_format)
    for coordinate, step in zip(torch.unravel_index(index, weight.shape), weight.stride(), strict=True):
        places += coordinate * step
    return places


def variants() -> list[Variant]:
    """Everything that is compiled: one per size of a value, since only bits are moved."""
    return [
        Variant(
            kernel=scatter_kernel,
            dtype=tables.NAMES[dtype],
            signature={
                "table": "*i64",
                "rows": "i32",
                "BITS": "constexpr",
                "EACH": "constexpr",
                "ENTRIES": "constexpr",
            },
            constexprs={"BITS": tables.bits_of(dtype), "EACH": each, "ENTRIES": ENTRIES},
            num_warps=_WARPS,
            label="each" if each else "one for all",
            divisible_by_16=("table",),
        )
        for dtype in (torch.bfloat16, torch.float32, torch.float64)
        for each in (True, False)
    ]
