"""First path of `topk`: a lower bound from a sample, then one pass over all vectors that keeps what exceeds it.

What equals the bound is only counted, per block, since it may be anything between one entry and all of them; the
first of these that are needed are fetched afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tables
from .launch import FUSED, sent
from .tables import COLUMNS, Rows, Table, locate
from .variant import Variant

BLOCK = 4096
PIECE = 1024
WARPS = 8
SAMPLE_BLOCK = 256
NONE = 2**63 - 1  # status of a vector in which nothing non-finite has been seen


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
def block_of(row, program, TYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Where a program's block begins: its address, its distance from the vector's start, and its entries."""
    X = tl.load(row + 1).to(tl.pointer_type(TYPE))
    if ALIGNED:
        X = tl.multiple_of(X, 16)
    first = (program - tl.load(row)) * BLOCK
    return X + first, first, tl.minimum(tl.load(row + 2) - first, BLOCK).to(tl.int32)


@triton.jit
def report_non_finite(Status, value, local, left, first):
    """Lower `Status` to the position, counted from `first`, of the first value that is NaN or infinite."""
    finite = tl.abs(value) < float("inf")
    lowest = tl.min(tl.where((local < left) & (finite == 0), local, left), 0)
    if lowest < left:
        tl.atomic_min(Status, first + lowest, sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def sample_kernel(table, Out, rows, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    """From each vector one entry of each of its strata, at a scattered place in the stratum.

    Row of the table: strata, vector, where its sample begins in Out, entries of the vector.
    """
    program = tl.program_id(0).to(tl.int64)
    row = table + locate(table, program, rows) * COLUMNS
    X = tl.load(row + 1).to(tl.pointer_type(TYPE))
    count = tl.load(row + 2)
    numel = tl.load(row + 5)
    stratum = (program - tl.load(row)) * BLOCK + tl.arange(0, BLOCK)
    step = numel // count
    scattered = (stratum.to(tl.uint32) * 2654435761) >> 7
    position = stratum * step + scattered.to(tl.int64) % step
    inside = (stratum < count) & (position < numel)
    tl.store(Out + tl.load(row + 4) + stratum, tl.load(X + position, mask=inside, other=0.0), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def filter_kernel(
    table,  # row: entries, vector, where it begins in the concatenation, group
    Places,  # [groups, 2] int64: where a group's candidates begin, and how many fit
    Bounds,  # [groups], the data's dtype
    Counts,  # [groups] int64: entries above the bound so far
    Status,  # [vectors] int64: first non-finite position so far
    Equal,  # [programs] int32: entries equal to the bound
    Positions,  # int64
    Values,  # the data's dtype
    rows,
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Append (position, value) of every entry > its group's bound, in no particular order."""
    program = tl.program_id(0).to(tl.int64)
    row = table + locate(table, program, rows) * COLUMNS
    # only scalars are 64 bits wide: vectors of 64-bit offsets would take the registers of the loads
    X, first, left = block_of(row, program, TYPE, ALIGNED, BLOCK)
    group = tl.load(row + 5)
    local = tl.arange(0, BLOCK)
    value = widened(load_block(X, local, left, BLOCK))
    bound = widened(tl.load(Bounds + group))
    # two counts in one sum: entries above the bound, and in the upper bits what else is of interest. `not <` also
    # catches NaN, in the values and in the bound.
    over = (value > bound) & (value < float("inf"))
    wanted = ((value < bound) == 0) | (value == float("-inf"))
    found = tl.sum(tl.where(local < left, tl.where(over, 1, tl.where(wanted, 1 << 16, 0)), 0), 0)
    hits = found & 0xFFFF
    # What follows reads its block again, from the cache, in pieces: a whole block, its scan and its 64-bit addresses
    # would triple the registers of every program and leave too few loads in flight.
    if found > hits:
        equal = 0
        for piece in range(0, BLOCK, PIECE):
            here = piece + tl.arange(0, PIECE)
            number = widened(load_block(X, here, left, BLOCK))
            report_non_finite(Status + tl.load(row + 3), number, here, left, first)
            equal += tl.sum(((here < left) & (number == bound)).to(tl.int32), 0)
        tl.store(Equal + program, equal)
    if hits > 0:
        taken = tl.atomic_add(Counts + group, hits.to(tl.int64), sem="relaxed")
        capacity = tl.load(Places + 2 * group + 1)
        slots = tl.load(Places + 2 * group)
        start = tl.load(row + 4) + first
        for piece in range(0, BLOCK, PIECE):
            here = piece + tl.arange(0, PIECE)
            again = load_block(X, here, left, BLOCK)
            number = widened(again)
            hit = (here < left) & (number > bound) & (number < float("inf"))
            place = tl.cumsum(hit.to(tl.int32), 0) - 1
            room = tl.minimum(tl.maximum(capacity - taken, 0), PIECE).to(tl.int32)
            keep = hit & (place < room)
            tl.store(Positions + slots + taken + place, start + here, mask=keep)
            tl.store(Values + slots + taken + place, again, mask=keep)
            taken += tl.sum(hit.to(tl.int32), 0)


@triton.jit(do_not_specialize=["rows"])
def ties_kernel(
    table,  # as for `filter_kernel`
    Wanted,  # [groups, 3] int64: where a group's ties begin, how many are wanted, how many lie in earlier groups
    Bounds,  # [groups], the data's dtype
    Equal,  # [programs] int32
    EqualEnd,  # [programs] int64: running sum of Equal
    Positions,  # int64
    Values,  # the data's dtype
    rows,
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write position and value of the first entries that equal their group's bound."""
    program = tl.program_id(0).to(tl.int64)
    tied = tl.load(Equal + program)
    if tied > 0:
        row = table + locate(table, program, rows) * COLUMNS
        group = tl.load(row + 5)
        before = tl.load(EqualEnd + program) - tied - tl.load(Wanted + 3 * group + 2)
        wanted = tl.load(Wanted + 3 * group + 1) - before
        if wanted > 0:
            X, first, left = block_of(row, program, TYPE, ALIGNED, BLOCK)
            bound = widened(tl.load(Bounds + group))
            local = tl.arange(0, BLOCK)
            x = load_block(X, local, left, BLOCK)
            equal = (local < left) & (widened(x) == bound)
            turn = tl.cumsum(equal.to(tl.int32), 0) - 1
            keep = equal & (turn < tl.minimum(wanted, BLOCK).to(tl.int32))
            out = tl.load(Wanted + 3 * group) + before
            tl.store(Positions + out + turn, tl.load(row + 4) + first + local, mask=keep)
            tl.store(Values + out + turn, x, mask=keep)


@dataclass(frozen=True)
class Blocks:
    """Vectors cut into blocks, one per program, tables on the device.

    Attributes:
        table: one row per vector that has entries.
        ends: for each group of vectors the number of blocks up to and with it.
        dtype: of the vectors.
        aligned: whether all of them start at a multiple of 16 bytes.
    """

    table: Table
    ends: tuple[int, ...]
    dtype: torch.dtype
    aligned: bool

    @property
    def constants(self) -> dict[str, object]:
        """Constexprs of a kernel that goes over the blocks."""
        return {"TYPE": tables.type_of(self.dtype), "ALIGNED": self.aligned, "BLOCK": BLOCK}


def cut(flats: Sequence[Tensor], starts: Sequence[int], groups: Sequence[range]) -> Blocks:
    """Lay out the vectors of some groups.

    Args:
        flats: contiguous vectors of one dtype on one device.
        starts: position of each in the concatenation of all.
        groups: which vectors belong together; not all of `flats` have to belong to one.

    Returns:
        The blocks, group after group.
    """
    sizes, addresses = tables.sizes(flats), tables.addresses(flats)
    members = [(i, group) for group, chosen in enumerate(groups) for i in chosen if sizes[i]]
    at, owner = np.array(members, np.int64).reshape(-1, 2).T
    rows = Rows(sizes[at], at, addresses[at], np.array(starts)[at], owner)
    table = tables.build(rows, BLOCK, flats[0].device)
    blocks = np.append(0, (-(-sizes[at] // BLOCK)).cumsum())
    ends = blocks[np.searchsorted(owner, np.arange(len(groups)), side="right")]
    return Blocks(table, tuple(ends.tolist()), flats[0].dtype, tables.aligned(addresses[at]))


def sample(draws: Sequence[tuple[Tensor, int, int]], out: Tensor) -> None:
    """Draw entries of vectors, the same ones every time.

    Args:
        draws: a vector, how many of its entries are drawn, and where they begin in `out`.
        out: `[m]`, the vectors' dtype, written.
    """
    drawn = [draw for draw in draws if draw[1]]
    vectors, counts, places = [v for v, _, _ in drawn], [k for _, k, _ in drawn], [p for _, _, p in drawn]
    rows = Rows(counts, range(len(drawn)), tables.addresses(vectors), places, tables.sizes(vectors))
    table = tables.build(rows, SAMPLE_BLOCK, out.device)
    if table.programs:
        sample_kernel[(table.programs,)](
            table.data, out, table.rows, TYPE=tables.type_of(out.dtype), BLOCK=SAMPLE_BLOCK, **FUSED
        )


@dataclass(frozen=True)
class Kept:
    """What one pass over the vectors of some groups found.

    Attributes:
        blocks: of the pass.
        bounds: of each group.
        places: where the candidates of each group begin, and how many fit.
        counts: int64 `[groups]`, how many entries exceed the bound of each, kept or not.
        equal: int32 `[blocks]`, how many entries equal it.
        equal_end: int64 `[blocks]`, running sum of `equal`.
        positions: int64, candidates of all groups.
        values: likewise.
    """

    blocks: Blocks
    bounds: Tensor
    places: Sequence[tuple[int, int]]
    counts: Tensor
    equal: Tensor
    equal_end: Tensor
    positions: Tensor
    values: Tensor

    def of(self, group: int, count: int) -> tuple[Tensor, Tensor]:
        """Positions and values of a group's candidates, of which there are `count`."""
        begin, _ = self.places[group]
        return self.positions[begin : begin + count], self.values[begin : begin + count]

    def tied(self) -> Tensor:
        """How many entries equal the bound of each group, int64 `[groups]`."""
        if not self.equal_end.numel():
            return torch.zeros_like(self.counts)
        last = sent(np.asarray(self.blocks.ends), self.equal_end.device) - 1
        up_to = torch.where(last < 0, 0, self.equal_end[last.clamp(min=0)])
        return torch.diff(up_to, prepend=up_to.new_zeros(1))

    def add_ties(self, above: Sequence[int], tied: Sequence[int], wanted: Sequence[int]) -> None:
        """Put behind the candidates of each group the first of the entries that equal its bound.

        Args:
            above: candidates of each group.
            tied: as `tied` counted.
            wanted: how many of them, at most what fits.
        """
        earlier = np.cumsum([0, *tied])[:-1]
        lines = [
            (place + have, want, before)
            for (place, _), have, want, before in zip(self.places, above, wanted, earlier, strict=True)
        ]
        ties_kernel[(self.blocks.table.programs,)](
            self.blocks.table.data,
            sent(np.asarray(lines, dtype=np.int64), self.bounds.device),
            self.bounds,
            self.equal,
            self.equal_end,
            self.positions,
            self.values,
            self.blocks.table.rows,
            **self.blocks.constants,
            num_warps=WARPS,
            **FUSED,
        )


def keep_above(blocks: Blocks, bounds: Tensor, places: Sequence[tuple[int, int]], status: Tensor) -> Kept:
    """Keep every entry > the bound of its group and look for a non-finite one, in one read.

    Args:
        blocks: of all groups.
        bounds: one entry per group, the vectors' dtype.
        places: where the candidates of each group begin in the buffer, and how many fit; what does not is counted.
        status: int64, one entry per vector, lowered to its first non-finite position.

    Returns:
        The candidates and what was counted.
    """
    room = max((begin + capacity for begin, capacity in places), default=0)
    counts = status.new_zeros(len(places))
    equal = torch.zeros(blocks.table.programs, dtype=torch.int32, device=status.device)
    positions, values = status.new_empty(room), bounds.new_empty(room)
    if blocks.table.programs:
        filter_kernel[(blocks.table.programs,)](
            blocks.table.data,
            sent(np.asarray(places, dtype=np.int64), status.device),
            bounds,
            counts,
            status,
            equal,
            positions,
            values,
            blocks.table.rows,
            **blocks.constants,
            PIECE=PIECE,
            num_warps=WARPS,
            **FUSED,
        )
    return Kept(blocks, bounds, places, counts, equal, equal.cumsum(0, dtype=torch.int64), positions, values)


def variants() -> list[Variant]:
    """Everything that this module launches."""
    made = []
    for dtype, name in tables.NAMES.items():
        data = {"TYPE": tables.type_of(dtype)}
        sampling = {"table": "*i64", "Out": f"*{name}", "rows": "i32"}
        constants = {**data, "BLOCK": SAMPLE_BLOCK}
        made.append(_variant(sample_kernel, name, sampling, constants, 4, ""))
        keeping = {
            "table": "*i64",
            "Places": "*i64",
            "Bounds": f"*{name}",
            "Counts": "*i64",
            "Status": "*i64",
        }
        keeping |= {"Equal": "*i32", "Positions": "*i64", "Values": f"*{name}", "rows": "i32"}
        tying = {"table": "*i64", "Wanted": "*i64", "Bounds": f"*{name}", "Equal": "*i32"}
        tying |= {"EqualEnd": "*i64", "Positions": "*i64", "Values": f"*{name}", "rows": "i32"}
        for aligned in (True, False):
            label = "aligned" if aligned else "unaligned"
            constants = {**data, "ALIGNED": aligned, "BLOCK": BLOCK}
            made.append(_variant(filter_kernel, name, keeping, {**constants, "PIECE": PIECE}, WARPS, label))
            made.append(_variant(ties_kernel, name, tying, constants, WARPS, label))
    return made


def _variant(
    kernel: object, name: str, signature: dict[str, str], constants: dict[str, object], warps: int, label: str
) -> Variant:
    pointers = tuple(key for key, kind in signature.items() if kind.startswith("*"))
    types = signature | dict.fromkeys(constants, "constexpr")
    return Variant(kernel, name, types, constants, warps, 3, label, pointers)
