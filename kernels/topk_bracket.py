"""Second path of `topk`: the exact k-th largest value by counting between two pivots, whatever the distribution.

One read counts what lies above, on and between two values, and keeps what lies between. The pivots come from a
sample; where they miss the k-th largest, or too much lies between them, the next ones divide in three what is left
of the ordered bit patterns, so that the search ends for any data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tables
from .launch import FUSED
from .tables import COLUMNS, locate
from .topk_filter import BLOCK, NONE, WARPS, Blocks, block_of, load_block, report_non_finite, widened
from .variant import Variant

PIECE = 1024
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit(do_not_specialize=["rows", "capacity"])
def bracket_kernel(
    table,  # row: entries, vector, -, -
    Pivots,  # [2], the data's dtype: the lower and the higher one
    Counts,  # [4] int64: entries > higher, == higher, between, == lower
    Status,  # [vectors] int64: first non-finite position so far
    Values,  # [capacity], the data's dtype: what lies between
    rows,
    capacity,
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Count a block's entries about two pivots, and append those between them in no particular order."""
    program = tl.program_id(0).to(tl.int64)
    row = table + locate(table, program, rows) * COLUMNS
    X, first, left = block_of(row, program, TYPE, ALIGNED, BLOCK)
    local = tl.arange(0, BLOCK)
    inside = local < left
    value = widened(load_block(X, local, left, BLOCK))
    low = widened(tl.load(Pivots))
    high = widened(tl.load(Pivots + 1))
    report_non_finite(Status + tl.load(row + 3), value, local, left, first)
    above = tl.sum((inside & (value > high)).to(tl.int32), 0)
    on_high = tl.sum((inside & (value == high)).to(tl.int32), 0)
    on_low = tl.sum((inside & (value == low)).to(tl.int32), 0)
    between = tl.sum((inside & (value > low) & (value < high)).to(tl.int32), 0)
    tl.atomic_add(Counts, above.to(tl.int64), mask=above > 0, sem="relaxed")
    tl.atomic_add(Counts + 1, on_high.to(tl.int64), mask=on_high > 0, sem="relaxed")
    tl.atomic_add(Counts + 3, on_low.to(tl.int64), mask=on_low > 0, sem="relaxed")
    if between > 0:
        taken = tl.atomic_add(Counts + 2, between.to(tl.int64), sem="relaxed")
        for piece in range(0, BLOCK, PIECE):  # in pieces, as in `topk_filter`
            here = piece + tl.arange(0, PIECE)
            again = load_block(X, here, left, BLOCK)
            number = widened(again)
            hit = (here < left) & (number > low) & (number < high)
            place = tl.cumsum(hit.to(tl.int32), 0) - 1
            room = tl.minimum(tl.maximum(capacity - taken, 0), PIECE).to(tl.int32)
            tl.store(Values + taken + place, again, mask=hit & (place < room))
            taken += tl.sum(hit.to(tl.int32), 0)


@dataclass(frozen=True)
class Bracket:
    """Where the k-th largest value is looked for.

    Attributes:
        low: a value below it, or -inf.
        high: a value above it, or +inf.
    """

    low: float
    high: float


def threshold(
    blocks: Blocks,
    k: int,
    bracket: Bracket,
    pivots: tuple[float, float] | None,
    capacity: int,
    status: Tensor,
) -> float | None:
    """The k-th largest of all entries.

    Args:
        blocks: of one group of vectors.
        k: 1 to the number of entries.
        bracket: the k-th largest value lies strictly inside.
        pivots: values inside the bracket to count about first, the lower one first; None looks at all inside.
        capacity: how many entries between pivots are kept to be sorted.
        status: int64, one entry per vector, lowered to its first non-finite position.

    Returns:
        The value, or None where an entry is not finite.
    """
    values = torch.empty(capacity, dtype=blocks.dtype, device=status.device)
    step = _Step.SAMPLED if pivots else _Step.WHOLE
    while True:
        low, high = pivots or (bracket.low, bracket.high)
        counts = _count(blocks, low, high, values, status)
        if counts is None:
            return None
        above, on_high, between, on_low = accumulate(counts)
        if k <= above:
            bracket = Bracket(high, bracket.high)
        elif k <= on_high:
            return high
        elif k <= between:
            if counts[2] <= capacity:
                kept = values[: counts[2]].sort(descending=True).values
                return float(kept[k - on_high - 1])
            bracket = Bracket(low, high)
        elif k <= on_low:
            return low
        else:
            bracket = Bracket(bracket.low, low)
        if step is _Step.WHOLE:
            step, pivots = _Step.SAMPLED, _about(values, (k - on_high) / counts[2])
        elif step is _Step.SAMPLED:
            step, pivots = _Step.THIRDS, _thirds(bracket, blocks.dtype)
        else:
            step, pivots = _Step.WHOLE, None


class _Step(Enum):
    """Where the pivots of a pass come from. The first two end the search in all likelihood, the third for certain."""

    WHOLE = "the ends of the bracket, so that a sample of all inside is kept"
    SAMPLED = "such a sample"
    THIRDS = "the bit patterns"


def _about(values: Tensor, share: float) -> tuple[float, float]:
    """Two of some values, about the one below which all but `share` of them lie."""
    rank = share * values.numel()
    margin = 4 * math.sqrt(rank) + 4
    ranks = [min(max(round(r), 0), values.numel() - 1) for r in (rank + margin, rank - margin)]
    low, high = values.sort(descending=True).values[ranks].tolist()
    return low, high


def _count(blocks: Blocks, low: float, high: float, values: Tensor, status: Tensor) -> list[int] | None:
    """What `bracket_kernel` counts, or None where an entry is not finite; what lies between goes to `values`."""
    pivots = torch.tensor([low, high], dtype=values.dtype).to(values.device)
    counts = status.new_zeros(4)
    bracket_kernel[(blocks.table.programs,)](
        blocks.table.data,
        pivots,
        counts,
        status,
        values,
        blocks.table.rows,
        values.numel(),
        **blocks.constants,
        PIECE=PIECE,
        num_warps=WARPS,
        **FUSED,
    )
    *found, lowest = torch.cat((counts, status.amin(0, keepdim=True))).tolist()
    if low == high:
        found[3] = 0  # counted as equal to the higher one already
    return found if lowest == NONE else None


def _thirds(bracket: Bracket, dtype: torch.dtype) -> tuple[float, float]:
    """Two values that divide the ordered bit patterns inside a bracket into three about equal parts."""
    low, high = _key(bracket.low, dtype), _key(bracket.high, dtype)
    assert high - low > 1, "nothing is left inside the bracket"
    return _value(low + max(1, (high - low) // 3), dtype), _value(high - max(1, (high - low) // 3), dtype)


def _key(value: float, dtype: torch.dtype) -> int:
    """The value's place among all of its dtype: a signed integer that orders as the values do."""
    bits = int(torch.tensor(value, dtype=dtype).view(_INTEGERS[dtype.itemsize]))
    return bits if bits >= 0 else -(bits & _magnitude(dtype))


def _value(key: int, dtype: torch.dtype) -> float:
    """The value with this key."""
    magnitude = torch.tensor(abs(key), dtype=_INTEGERS[dtype.itemsize]).view(dtype)
    return math.copysign(float(magnitude), key)


def _magnitude(dtype: torch.dtype) -> int:
    """The bits of a value without its sign."""
    return (1 << (8 * dtype.itemsize - 1)) - 1


def variants() -> list[Variant]:
    """Everything that this module launches."""
    made = []
    for dtype, name in tables.NAMES.items():
        signature = {"table": "*i64", "Pivots": f"*{name}", "Counts": "*i64", "Status": "*i64"}
        signature |= {"Values": f"*{name}", "rows": "i32", "capacity": "i64"}
        pointers = tuple(key for key, kind in signature.items() if kind.startswith("*"))
        for aligned in (True, False):
            constants = {"TYPE": tables.type_of(dtype), "ALIGNED": aligned, "BLOCK": BLOCK, "PIECE": PIECE}
            types = signature | dict.fromkeys(constants, "constexpr")
            label = "aligned" if aligned else "unaligned"
            made.append(Variant(bracket_kernel, name, types, constants, WARPS, 3, label, pointers))
    return made
