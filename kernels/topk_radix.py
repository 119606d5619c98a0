"""Second road of `topk`: the exact threshold by radix counting, for heavy ties and for large k.

Digit by digit, from the top, the values' order-preserving integer keys are counted; after the last digit the
k-th largest key is known. A count per block and a prefix sum then give every selected entry its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .topk_filter import TRITON_TYPES, load_block, report_non_finite, widened
from .variant import Variant

BITS = 11
BINS = 1 << BITS
BLOCK = 4096
WARPS = 8
PROGRAMS = 1024


class Selected(NamedTuple):
    """The k largest entries of a group of vectors, in no particular order.

    Attributes:
        positions: int64 `[k]`, in the vectors' concatenation.
        values: `[k]`.
    """

    positions: Tensor
    values: Tensor


@triton.jit
def ordered_key(x):
    """Unsigned integer of the float's width (at least 32 bits) that orders as the floats do; -0.0 as 0.0."""
    if x.dtype.primitive_bitwidth == 16:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        signed = bits ^ ((bits >> 31) & 0x7FFF)
        signed = tl.where(signed == -1, 0, signed)
        return (signed + 0x8000).to(tl.uint32)
    elif x.dtype.primitive_bitwidth == 32:
        bits = x.to(tl.int32, bitcast=True)
        signed = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        signed = tl.where(signed == -1, 0, signed)
        return signed.to(tl.uint32, bitcast=True) ^ 0x80000000
    else:
        bits = x.to(tl.int64, bitcast=True)
        signed = bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
        signed = tl.where(signed == -1, 0, signed)
        return signed.to(tl.uint64, bitcast=True) ^ 0x8000000000000000


@triton.jit(do_not_specialize=["Prefix", "Counts", "numel", "shift"])
def histogram_kernel(X, Prefix, Counts, numel, shift, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Add to Counts how often each digit occurs among the entries whose higher digits are Prefix."""
    prefix = tl.load(Prefix).to(tl.uint64, bitcast=True)
    total = tl.zeros([1 << BITS], dtype=tl.int32)
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    first = tl.program_id(0).to(tl.int64) * BLOCK
    while first < numel:
        local = tl.arange(0, BLOCK)
        left = tl.minimum(numel - first, BLOCK).to(tl.int32)
        key = ordered_key(load_block(X + first, local, left, BLOCK))
        high = key >> shift.to(key.dtype)
        match = (local < left) & ((high >> BITS).to(tl.uint64) == prefix)
        total += tl.histogram((high & ((1 << BITS) - 1)).to(tl.int32), 1 << BITS, mask=match)
        first += step
    tl.atomic_add(Counts + tl.arange(0, 1 << BITS), total.to(tl.int64), mask=total > 0, sem="relaxed")


@triton.jit(do_not_specialize=["Threshold", "Greater", "Equal", "Status", "numel"])
def count_kernel(X, Threshold, Greater, Equal, Status, numel, BLOCK: tl.constexpr):
    """Per block, how many keys are above the threshold and how many equal it."""
    block = tl.program_id(0).to(tl.int64)
    first = block * BLOCK
    local = tl.arange(0, BLOCK)
    left = tl.minimum(numel - first, BLOCK).to(tl.int32)
    x = load_block(X + first, local, left, BLOCK)
    inside = local < left
    key = ordered_key(x)
    threshold = tl.load(Threshold).to(tl.uint64, bitcast=True).to(key.dtype)
    tl.store(Greater + block, tl.sum((inside & (key > threshold)).to(tl.int32), 0))
    tl.store(Equal + block, tl.sum((inside & (key == threshold)).to(tl.int32), 0))
    report_non_finite(Status, widened(x), local, left, first)


@triton.jit(
    do_not_specialize=[
        "Threshold",
        "Ties",
        "GreaterEnd",
        "Greater",
        "EqualEnd",
        "Equal",
        "Positions",
        "Values",
        "numel",
        "start",
        "k",
    ]
)
def compact_kernel(
    X,  # [numel]
    Threshold,  # one int64, the bits of the k-th largest key
    Ties,  # one int64: how many entries equal to it are selected
    GreaterEnd,  # [blocks] int64: selected above the threshold up to and with this block
    Greater,  # [blocks] int32
    EqualEnd,  # [blocks] int64
    Equal,  # [blocks] int32
    Positions,  # [k] int64
    Values,  # [k]
    numel,
    start,
    k,
    BLOCK: tl.constexpr,
):
    """Write the entries above the threshold, then the first `Ties` of those equal to it, by position."""
    block = tl.program_id(0).to(tl.int64)
    ties = tl.load(Ties)
    above = tl.load(Greater + block)
    tied = tl.load(Equal + block)
    ties_before = tl.load(EqualEnd + block) - tied
    if (above > 0) | ((tied > 0) & (ties_before < ties)):
        first = block * BLOCK
        local = tl.arange(0, BLOCK)
        left = tl.minimum(numel - first, BLOCK).to(tl.int32)
        x = load_block(X + first, local, left, BLOCK)
        key = ordered_key(x)
        threshold = tl.load(Threshold).to(tl.uint64, bitcast=True).to(key.dtype)
        greater = (local < left) & (key > threshold)
        place = tl.cumsum(greater.to(tl.int32), 0) - 1
        base = tl.load(GreaterEnd + block) - above
        tl.store(Positions + base + place, start + first + local, mask=greater)
        tl.store(Values + base + place, x, mask=greater)
        equal = (local < left) & (key == threshold)
        turn = tl.cumsum(equal.to(tl.int32), 0) - 1
        wanted = tl.minimum(tl.maximum(ties - ties_before, 0), BLOCK).to(tl.int32)
        base = k - ties + ties_before
        tl.store(Positions + base + turn, start + first + local, mask=equal & (turn < wanted))
        tl.store(Values + base + turn, x, mask=equal & (turn < wanted))


def select(flats: Sequence[Tensor], starts: Sequence[int], k: int, status: Sequence[Tensor]) -> Selected:
    """The k largest entries of all vectors together; among equal ones those that come first.

    Args:
        flats: vectors of one dtype on one device.
        starts: added to the positions of each.
        k: 1 to the number of entries.
        status: one int64 for each vector, lowered to its first non-finite position.

    Returns:
        Positions and values, ready to be put in order.
    """
    flats, starts, status = _without_empty(flats, starts, status)
    threshold, ties = _threshold(flats, k)
    device = flats[0].device
    blocks = [triton.cdiv(flat.numel(), BLOCK) for flat in flats]
    greater = torch.empty(sum(blocks), dtype=torch.int32, device=device)
    equal = torch.empty_like(greater)
    parts = list(zip(flats, starts, status, greater.split(blocks), equal.split(blocks), strict=True))
    for flat, _, seen, above, tied in parts:
        count_kernel[(above.numel(),)](
            flat, threshold, above, tied, seen, flat.numel(), BLOCK=BLOCK, num_warps=WARPS
        )
    greater_end = greater.cumsum(0, dtype=torch.int64).split(blocks)
    equal_end = equal.cumsum(0, dtype=torch.int64).split(blocks)
    positions = torch.empty(k, dtype=torch.int64, device=device)
    values = flats[0].new_empty(k)
    for (flat, start, _, above, tied), to_above, to_tied in zip(parts, greater_end, equal_end, strict=True):
        compact_kernel[(above.numel(),)](
            flat,
            threshold,
            ties,
            to_above,
            above,
            to_tied,
            tied,
            positions,
            values,
            flat.numel(),
            start,
            k,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return Selected(positions, values)


def _without_empty(
    flats: Sequence[Tensor], starts: Sequence[int], status: Sequence[Tensor]
) -> tuple[list[Tensor], list[int], list[Tensor]]:
    kept = [i for i, flat in enumerate(flats) if flat.numel()]
    return [flats[i] for i in kept], [starts[i] for i in kept], [status[i] for i in kept]


def _threshold(flats: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The bits of the k-th largest key, and how many entries equal to it belong to the k largest."""
    device = flats[0].device
    prefix = torch.zeros(1, dtype=torch.int64, device=device)
    remaining = torch.full((1,), k, dtype=torch.int64, device=device)
    digits = -(-flats[0].element_size() * 8 // BITS)
    for shift in range(BITS * (digits - 1), -1, -BITS):
        counts = torch.zeros(BINS, dtype=torch.int64, device=device)
        for flat in flats:
            grid = (min(PROGRAMS, triton.cdiv(flat.numel(), BLOCK)),)
            histogram_kernel[grid](
                flat, prefix, counts, flat.numel(), shift, BITS=BITS, BLOCK=BLOCK, num_warps=WARPS
            )
        from_top = counts.flip(0).cumsum(0)
        row = torch.searchsorted(from_top, remaining)
        remaining = remaining - (from_top[row] - counts[BINS - 1 - row])
        prefix = (prefix << BITS) | (BINS - 1 - row)
    return prefix, remaining


def variants() -> list[Variant]:
    """Everything that this module launches."""
    made = []
    histogram = {"Prefix": "*i64", "Counts": "*i64", "numel": "i64", "shift": "i32"}
    count = {"Threshold": "*i64", "Greater": "*i32", "Equal": "*i32", "Status": "*i64", "numel": "i64"}
    compact = {"Threshold": "*i64", "Ties": "*i64", "GreaterEnd": "*i64", "Greater": "*i32"}
    compact |= {"EqualEnd": "*i64", "Equal": "*i32", "Positions": "*i64"}
    compact |= dict.fromkeys(("numel", "start", "k"), "i64")
    for name in TRITON_TYPES.values():
        data = f"*{name}"
        for kernel, signature, sizes in (
            (histogram_kernel, histogram, {"BITS": BITS, "BLOCK": BLOCK}),
            (count_kernel, count, {"BLOCK": BLOCK}),
            (compact_kernel, compact | {"Values": data}, {"BLOCK": BLOCK}),
        ):
            types = {"X": data} | signature | dict.fromkeys(sizes, "constexpr")
            made.append(Variant(kernel, name, types, sizes, WARPS, 3, str(sizes["BLOCK"]), ("X",)))
    return made
