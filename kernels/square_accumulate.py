"""`F += g²` for many tensors in one launch per gradient dtype; float32 sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tables
from .launch import FUSED, on_device
from .tables import COLUMNS, Rows, Table, locate, widen
from .variant import Variant

CHUNK = 1 << 13
BLOCK = 1 << 11
_WARPS = 8


@triton.jit(do_not_specialize=["rows"])
def square_accumulate_kernel(
    table,
    rows,
    BITS: tl.constexpr,
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """F[i] += float32(g[i])² for the entries of chunk `program_id`."""
    program = tl.program_id(0).to(tl.int64)
    row = table + locate(table, program, rows) * COLUMNS
    F = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    G = tl.load(row + 4).to(tl.pointer_type(BITS))
    if ALIGNED:
        F = tl.multiple_of(F, 16)
        G = tl.multiple_of(G, 16)
    size = tl.load(row + 2)
    start = (program - tl.load(row)) * CHUNK
    if start + CHUNK <= size:  # no mask, and so wide loads, several under way
        for step in tl.static_range(0, CHUNK, BLOCK):
            place = start + step + tl.arange(0, BLOCK)
            g = widen(tl.load(G + place), TYPE, tl.float32)
            tl.store(F + place, tl.fma(g, g, tl.load(F + place)))
    else:
        for step in range(0, CHUNK, BLOCK):
            place = start + step + tl.arange(0, BLOCK)
            inside = place < size
            g = widen(tl.load(G + place, mask=inside, other=0), TYPE, tl.float32)
            tl.store(F + place, tl.fma(g, g, tl.load(F + place, mask=inside, other=0.0)), mask=inside)


def square_accumulate_(F_list: Sequence[Tensor], grad_list: Sequence[Tensor]) -> None:
    """Add the square of each gradient to its Fisher tensor.

    Args:
        F_list: float32 on one device, no two sharing memory. A non-contiguous one is copied there and back.
        grad_list: same shapes and device, float16, bfloat16, float32 or float64. A non-contiguous one is copied.
    """
    targets = [F.contiguous() for F in F_list]
    gradients = [gradient.contiguous() for gradient in grad_list]
    with on_device(F_list[0]):
        for dtype, table, aligned in _launches(targets, gradients):
            square_accumulate_kernel[(table.programs,)](
                table.data,
                table.rows,
                BITS=tables.bits_of(dtype),
                TYPE=tables.type_of(dtype),
                ALIGNED=aligned,
                CHUNK=CHUNK,
                BLOCK=BLOCK,
                num_warps=_WARPS,
                **FUSED,
            )
    for F, target in zip(F_list, targets, strict=True):
        if target is not F:
            F.copy_(target)


def _launches(
    targets: Sequence[Tensor], gradients: Sequence[Tensor]
) -> list[tuple[torch.dtype, Table, bool]]:
    """Dtype, table and alignment of every launch: all memory is there before the first F is changed."""
    sizes, added_to, added = tables.sizes(targets), tables.addresses(targets), tables.addresses(gradients)
    found = []
    for dtype, at in tables.by_kind(gradients):
        table = tables.build(Rows(sizes[at], at, added_to[at], added[at]), CHUNK, targets[0].device)
        if table.programs:
            found.append((dtype, table, tables.aligned(added_to[at], added[at])))
    return found


def variants() -> list[Variant]:
    """Everything that is compiled."""
    found = []
    for dtype, name in tables.NAMES.items():
        for aligned in (True, False):
            constants = {
                "BITS": tables.bits_of(dtype),
                "TYPE": tables.type_of(dtype),
                "ALIGNED": aligned,
                "CHUNK": CHUNK,
                "BLOCK": BLOCK,
            }
            found.append(
                Variant(
                    kernel=square_accumulate_kernel,
                    dtype=name,
                    signature={"table": "*i64", "rows": "i32", **dict.fromkeys(constants, "constexpr")},
                    constexprs=constants,
                    num_warps=_WARPS,
                    label="aligned" if aligned else "unaligned",
                    divisible_by_16=("table",),
                )
            )
    return found
