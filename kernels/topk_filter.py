"""First road of `topk`: a lower bound from a sample, then one pass that keeps what reaches it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .variant import Variant

BLOCK = 4096
PIECE = 1024
WARPS = 8
SAMPLE_BLOCK = 1024
NONE = 2**63 - 1  # status of a tensor in which nothing non-finite has been seen
TRITON_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}


@triton.jit
def widened(x):
    """16-bit floats as float32, which keeps their order and is exact; the others unchanged."""
    if x.dtype.primitive_bitwidth == 16:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def load_block(X, local, left, BLOCK: tl.constexpr):
    """Entries at `X + local`; without a mask in a whole block, so that the loads stay 16 bytes wide."""
    return tl.load(X + local) if left == BLOCK else tl.load(X + local, mask=local < left, other=0.0)


@triton.jit
def report_non_finite(Status, value, local, left, first):
    """Lower `Status` to the position, counted from `first`, of the first value that is NaN or infinite."""
    finite = tl.abs(value) < float("inf")
    lowest = tl.min(tl.where((local < left) & (finite == 0), local, local.shape[0]), 0)
    if lowest < local.shape[0]:
        tl.atomic_min(Status, first + lowest, sem="relaxed")


@triton.jit(do_not_specialize=["numel", "step", "count"])
def sample_kernel(X, Out, numel, step, count, BLOCK: tl.constexpr):
    """One entry from each of `count` strata of `step` entries, at a scattered place in the stratum."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    scattered = (i.to(tl.uint32) * 2654435761) >> 7
    stratum = i.to(tl.int64)
    position = stratum * step + scattered.to(tl.int64) % step
    inside = (stratum < count) & (position < numel)
    tl.store(Out + stratum, tl.load(X + position, mask=inside, other=0.0), mask=inside)


@triton.jit(do_not_specialize=["Bound", "Count", "Status", "numel", "start", "capacity"])
def filter_kernel(
    X,  # [numel], any float dtype
    Bound,  # one entry of X's dtype
    Count,  # one int64: entries that reached the bound so far
    Status,  # one int64: first non-finite position so far
    Positions,  # [capacity] int64
    Values,  # [capacity], X's dtype
    numel,
    start,
    capacity,
    BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Append (start + position, value) of every entry >= Bound, in no particular order."""
    # only scalars are 64 bits wide: vectors of 64-bit offsets would take the registers of the loads
    first = tl.program_id(0).to(tl.int64) * BLOCK
    local = tl.arange(0, BLOCK)
    left = tl.minimum(numel - first, BLOCK).to(tl.int32)
    x = load_block(X + first, local, left, BLOCK)
    value = widened(x)
    bound = widened(tl.load(Bound))
    # `not <` also catches NaN, in the values and in the bound
    wanted = (local < left) & (((value < bound) == 0) | (value == float("-inf")))
    if tl.max(wanted.to(tl.int32), 0) > 0:
        report_non_finite(Status, value, local, left, first)
        hits = (wanted & (value >= bound) & (tl.abs(value) < float("inf"))).to(tl.int32)
        taken = tl.atomic_add(Count, tl.sum(hits, 0).to(tl.int64), sem="relaxed")
        # Rare, so in small pieces read again from the cache: the scan and the 64-bit addresses of a whole
        # block would triple the registers of every program and leave too few loads in flight.
        for piece in range(0, BLOCK, PIECE):
            here = piece + tl.arange(0, PIECE)
            again = load_block(X + first, here, left, BLOCK)
            number = widened(again)
            hit = (here < left) & (number >= bound) & (tl.abs(number) < float("inf"))
            place = tl.cumsum(hit.to(tl.int32), 0) - 1
            room = tl.minimum(tl.maximum(capacity - taken, 0), PIECE).to(tl.int32)
            keep = hit & (place < room)
            tl.store(Positions + taken + place, start + first + here, mask=keep)
            tl.store(Values + taken + place, again, mask=keep)
            taken += tl.sum(hit.to(tl.int32), 0)


def sample(flat: Tensor, out: Tensor) -> None:
    """Draw `len(out)` entries of `flat`, the same ones every time.

    Args:
        flat: `[n]`, n >= `len(out)`.
        out: `[m]`, the same dtype, written.
    """
    count = out.numel()
    step = flat.numel() // max(count, 1)
    if count:
        grid = (triton.cdiv(count, SAMPLE_BLOCK),)
        sample_kernel[grid](flat, out, flat.numel(), step, count, BLOCK=SAMPLE_BLOCK)


def keep_from(
    flat: Tensor, start: int, bound: Tensor, count: Tensor, status: Tensor, positions: Tensor, values: Tensor
) -> None:
    """Append every entry >= bound and look for a non-finite one, in one read.

    Args:
        flat: `[n]`.
        start: added to each position.
        bound: one entry, the same dtype.
        count: one int64, raised by the number of entries that reach the bound, kept or not.
        status: one int64, lowered to the first non-finite position.
        positions: int64 `[capacity]`; what does not fit is not written.
        values: `[capacity]`, the same dtype as flat.
    """
    if flat.numel():
        filter_kernel[(triton.cdiv(flat.numel(), BLOCK),)](
            flat,
            bound,
            count,
            status,
            positions,
            values,
            flat.numel(),
            start,
            positions.numel(),
            BLOCK=BLOCK,
            PIECE=PIECE,
            num_warps=WARPS,
        )


def variants() -> list[Variant]:
    """Everything that this module launches."""
    made = []
    keeping = {"Bound": "{}", "Count": "*i64", "Status": "*i64", "Positions": "*i64", "Values": "{}"}
    keeping |= dict.fromkeys(("numel", "start", "capacity"), "i64")
    drawing = {"Out": "{}"} | dict.fromkeys(("numel", "step", "count"), "i64")
    for kernel, signature, sizes, warps, aligned in (
        (filter_kernel, keeping, {"BLOCK": BLOCK, "PIECE": PIECE}, WARPS, ("X", "Positions", "Values")),
        (sample_kernel, drawing, {"BLOCK": SAMPLE_BLOCK}, 4, ("X", "Out")),
    ):
        for name in TRITON_TYPES.values():
            types = {key: kind.format(f"*{name}") for key, kind in ({"X": "{}"} | signature).items()}
            types |= dict.fromkeys(sizes, "constexpr")
            made.append(Variant(kernel, name, types, sizes, warps, 3, str(sizes["BLOCK"]), aligned))
    return made
