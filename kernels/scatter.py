"""Writing values to positions of many tensors in one launch per dtype, as bit patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tables
from .launch import FUSED, on_device, require_device
from .tables import COLUMNS, Row, Table, locate
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
    places = [memory_places(weight, index) for weight, index in zip(weights, indices, strict=True)]
    sources = [value.contiguous() for value in values]
    for launch in prepare(weights, places, [source.data_ptr() for source in sources]):
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


def prepare(
    weights: Sequence[Tensor], places: Sequence[Tensor], sources: Sequence[int], each: bool = True
) -> list[Launch]:
    """Everything that a write allocates; what it returns only starts kernels.

    Args:
        weights: on one device.
        places: `memory_places` of what is written.
        sources: address of each weight's values.
        each: whether there is a value per position; otherwise one per tensor.

    Returns:
        One launch per dtype.
    """
    require_device(weights[0])
    return [
        Launch(
            dtype,
            each,
            tables.build(rows_of(weights, places, sources, positions), ENTRIES, weights[0].device),
        )
        for dtype, positions in tables.by_kind(weights)
    ]


def rows_of(
    weights: Sequence[Tensor], places: Sequence[Tensor], others: Sequence[int], positions: Sequence[int]
) -> list[Row]:
    """Rows (weight, places, another address) of the tensors at some positions of the lists."""
    return [
        Row(places[i].numel(), i, weights[i].data_ptr(), places[i].data_ptr(), others[i]) for i in positions
    ]


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
