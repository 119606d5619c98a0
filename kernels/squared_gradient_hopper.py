"""`squared_gradient` for Hopper with specialised warps: one copies, two groups of four multiply and square in turn.

A tile of F has 128 rows, 64 for each group, and 192 columns, as 128 and 64 because shapes are powers of two. Operands
come by TMA into a ring of buffers; barriers in shared memory say which buffers are full and which are free. While one
group squares at a segment's end the other multiplies. Not verified on a GPU, and never chosen by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from . import schedule, tuning
from .launch import FUSED, on_device
from .squared_gradient import NAMES, accumulate, aligned_rows, problem_of, sizes_checked
from .tuning import Config
from .variant import Variant

_HALF, _WIDE, _REST = 64, 128, 64  # rows of a group, and the two parts of its columns
_BLOCK_TOKENS, _STAGES, _BAND = 64, 5, 8
_TILE = Config(2 * _HALF, _WIDE + _REST, _BLOCK_TOKENS, warps=9, stages=_STAGES)
_HOPPER = 9  # major compute capability
_MAX_ROWS = 1 << 30
_BILLION = gl.constexpr(_MAX_ROWS)
_REGISTERS = gl.constexpr(240)  # of a multiplying group's threads; those that copy give theirs up

# Triton 3.6 has the older name only
_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared


@gluon.jit
def _copy(
    y, x, x_rest, blocks, begin, end, first_out, first_in, ys, xs, rests, full, empty,
    HALF: gl.constexpr, WIDE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Fill the buffers with one token block after another; rows beyond a block are zero, see `_ragged`."""
    row = gl.load(blocks + 2 * begin)
    signed_rows = gl.load(blocks + 2 * begin + 1)
    for block in range(begin, end):
        next_row = gl.load(blocks + 2 * block + 2)
        next_signed_rows = gl.load(blocks + 2 * block + 3)
        rows = gl.where(signed_rows < 0, -signed_rows, signed_rows)
        stage = (block - begin) % STAGES
        mbarrier.wait(empty.index(stage), (((block - begin) // STAGES) & 1) ^ 1)
        ready = full.index(stage)
        mbarrier.expect(ready, 2 * y.block_type.nbytes + x.block_type.nbytes + x_rest.block_type.nbytes)
        after = row + rows
        gap = _BILLION - rows
        _load(y, [_BILLION, after, gap, first_out], ready, ys.index(2 * stage))
        _load(y, [_BILLION, after, gap, first_out + HALF], ready, ys.index(2 * stage + 1))
        _load(x, [_BILLION, after, gap, first_in], ready, xs.index(stage))
        _load(x_rest, [_BILLION, after, gap, first_in + WIDE], ready, rests.index(stage))
        row = next_row
        signed_rows = next_signed_rows


@gluon.jit
def _add(tile, squares, rows, columns, d_in, add, layout: gl.constexpr):
    """Add squares to a part of F of which `rows` and `columns` exist, or overwrite it where `add` is 0."""
    o = gl.arange(0, squares.shape[0], gl.SliceLayout(1, layout))
    i = gl.arange(0, squares.shape[1], gl.SliceLayout(0, layout))
    inside = (o < rows)[:, None] & (i < columns)[None, :]
    pointers = tile + (o[:, None] * d_in + i[None, :])
    if add != 0:
        squares += gl.load(pointers, mask=inside, other=0.0)
    gl.store(pointers, squares, mask=inside)


@gluon.jit
def _square(
    tile, blocks, begin, end, rows, columns, d_in, add, ys, xs, rests, full, empty, turn,
    group: gl.constexpr,
    BLOCK_TOKENS: gl.constexpr, HALF: gl.constexpr, WIDE: gl.constexpr, REST: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Multiply a group's rows of every block, square at each segment's end, add to F at the last."""
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 16])
    narrow: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, REST, 16])
    gradient = gl.zeros((HALF, WIDE), gl.float32, wide)
    squares = gl.zeros((HALF, WIDE), gl.float32, wide)
    rest = gl.zeros((HALF, REST), gl.float32, narrow)
    rest_squares = gl.zeros((HALF, REST), gl.float32, narrow)
    if group == 1:  # one step behind, so that the groups do not reach the ends of segments together
        mbarrier.wait(turn.index(0), 0, pred=begin < end)
    going_on = False
    signed_rows = gl.load(blocks + 2 * begin + 1)
    for block in range(begin, end):
        next_signed_rows = gl.load(blocks + 2 * block + 3)
        stage = (block - begin) % STAGES
        mbarrier.wait(full.index(stage), ((block - begin) // STAGES) & 1)
        y = ys.index(2 * stage + group).reshape([BLOCK_TOKENS, HALF]).permute((1, 0))
        x = xs.index(stage).reshape([BLOCK_TOKENS, WIDE])
        gradient = warpgroup_mma(y, x, gradient, use_acc=going_on, is_async=True)
        x = rests.index(stage).reshape([BLOCK_TOKENS, REST])
        rest = warpgroup_mma(y, x, rest, use_acc=going_on, is_async=True)
        gradient, rest = warpgroup_mma_wait(0, deps=[gradient, rest])
        mbarrier.arrive(empty.index(stage), count=1)
        if group == 0 and block == begin:
            mbarrier.arrive(turn.index(0), count=1)
        going_on = signed_rows >= 0
        if signed_rows < 0:
            squares = gl.fma(gradient, gradient, squares)
            rest_squares = gl.fma(rest, rest, rest_squares)
        signed_rows = next_signed_rows
    tile += group * HALF * d_in
    _add(tile, squares, rows - group * HALF, columns, d_in, add, wide)
    _add(tile + WIDE, rest_squares, rows - group * HALF, columns - WIDE, d_in, add, narrow)


@gluon.jit(do_not_specialize=["add"])
def hopper_kernel(
    F, y, x, x_rest, blocks, spans, d_out, d_in, add,
    BLOCK_TOKENS: gl.constexpr, HALF: gl.constexpr, WIDE: gl.constexpr, REST: gl.constexpr,
    STAGES: gl.constexpr, BAND: gl.constexpr,
):  # fmt: skip
    """One tile of one slice of F, as `squared_gradient_kernel`; y, x and x_rest are descriptors of the operands."""
    tiles_out = gl.cdiv(d_out, 2 * HALF)
    tiles_in = gl.cdiv(d_in, WIDE + REST)
    span = gl.program_id(0) // (tiles_out * tiles_in)
    work = gl.program_id(0) % (tiles_out * tiles_in)
    band = work // (BAND * tiles_in)
    height = gl.minimum(tiles_out - band * BAND, BAND)
    within = work % (BAND * tiles_in)
    first_out = (band * BAND + within % height) * (2 * HALF)
    first_in = within // height * (WIDE + REST)
    slice_ = gl.load(spans + 3 * span).to(gl.int64)
    begin = gl.load(spans + 3 * span + 1)
    end = gl.load(spans + 3 * span + 2)
    tile = F + (slice_ * d_out + first_out) * d_in + first_in

    ys = gl.allocate_shared_memory(y.dtype, [2 * STAGES, 1, 1, BLOCK_TOKENS, HALF], y.layout)
    xs = gl.allocate_shared_memory(x.dtype, [STAGES, 1, 1, BLOCK_TOKENS, WIDE], x.layout)
    rests = gl.allocate_shared_memory(x.dtype, [STAGES, 1, 1, BLOCK_TOKENS, REST], x_rest.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    mbarrier.init(turn.index(0), count=1)
    fence_async_shared()
    rows, columns = d_out - first_out, d_in - first_in
    gl.warp_specialize(
        [
            (_square, (tile, blocks, begin, end, rows, columns, d_in, add, ys, xs, rests, full, empty, turn, 0,
                       BLOCK_TOKENS, HALF, WIDE, REST, STAGES)),
            (_square, (tile, blocks, begin, end, rows, columns, d_in, add, ys, xs, rests, full, empty, turn, 1,
                       BLOCK_TOKENS, HALF, WIDE, REST, STAGES)),
            (_copy, (y, x, x_rest, blocks, begin, end, first_out, first_in, ys, xs, rests, full, empty,
                     HALF, WIDE, STAGES)),
        ],
        [4, 1],
        [_REGISTERS, 24],
    )  # fmt: skip


def squared_gradient(
    F: Tensor,
    grad_output: Tensor,
    input: Tensor,
    bounds: schedule.Bounds | Tensor,
    targets: Sequence[int] | Tensor | None = None,
) -> None:
    """Add the squared gradient of every segment to F; arguments as for `kernels.squared_gradient`.

    Raises:
        RuntimeError: the tensors are not on a Hopper GPU.
        TypeError: the operands are neither bfloat16 nor float16.
        ValueError: more than 2³⁰ rows, or 2²³ columns of an operand, or rows of F that do not start at multiples of
            16 bytes: accessed word by word they spill.
    """
    if not F.is_cuda or torch.version.hip or torch.cuda.get_device_capability(F.device)[0] != _HOPPER:
        raise RuntimeError(
            f"this kernel needs tensors on a Hopper GPU (compute capability 9), got {F.device}."
        )
    if grad_output.dtype.itemsize != 2:
        raise TypeError(f"this kernel multiplies bfloat16 and float16 only, got {grad_output.dtype}.")
    sizes_checked(F, grad_output, _MAX_ROWS)
    with on_device(F):
        if 0 in (F.numel(), grad_output.shape[0], len(bounds)):
            return
        problem = problem_of(F, grad_output, len(bounds))
        if not tuning.fits_rows(_TILE, problem.d_in, problem.aligned):
            raise ValueError(
                f"rows of F must start at multiples of 16 bytes for this kernel, got a d_in of {problem.d_in}"
                f"{'' if problem.aligned else ' and an F that starts elsewhere'}."
            )
        splits = tuning.splits(problem, _TILE)
        work = schedule.build(F, problem.rows, bounds, targets, _BLOCK_TOKENS, splits)
        _launch(F, aligned_rows(grad_output), aligned_rows(input), work)


def _launch(F: Tensor, Y: Tensor, X: Tensor, work: schedule.Schedule) -> None:
    d_out, d_in = F.shape[-2:]
    described = [_described(rows, columns) for rows, columns in ((Y, _HALF), (X, _WIDE), (X, _REST))]

    def launch(target: Tensor, add: int) -> None:
        hopper_kernel[(len(work.spans) * _TILE.tiles(d_out, d_in),)](
            target,
            *described,
            work.blocks,
            work.spans,
            d_out,
            d_in,
            add,
            **_constexprs(),
            num_warps=4,
            **FUSED,
        )

    accumulate(F, work, launch)


def _described(rows: Tensor, columns: int) -> TensorDescriptor:
    shape, strides = ragged(rows.shape[1], rows.stride(0))
    return TensorDescriptor(rows, shape, strides, [1, 1, _BLOCK_TOKENS, columns], _shared_layout())


def ragged(width: int, row: int) -> tuple[list[int], list[int]]:
    """Shape and strides of a descriptor of which a block can end at any row, with zeros behind.

    The rows of a block are put at the end of a dimension of 2³⁰: coordinates (2³⁰, end, 2³⁰ - rows, column) lie,
    modulo 2⁶⁴ bytes, at the block's first row, and what is beyond its last one is outside (as in
    `triton.tools.ragged_tma`).
    """
    return [0x7FFF0000, 0x7FFF0000, _MAX_ROWS, width], [2**34 - row, row, row, 1]


def _shared_layout() -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)


def _constexprs() -> dict[str, int]:
    return {
        "BLOCK_TOKENS": _BLOCK_TOKENS,
        "HALF": _HALF,
        "WIDE": _WIDE,
        "REST": _REST,
        "STAGES": _STAGES,
        "BAND": _BAND,
    }


def variants() -> list[Variant]:
    """Both dtypes, with d_out as it may be in a launch."""
    return [
        _variant(name, f"{_TILE}{label}", unknown)
        for name in (NAMES[torch.bfloat16], NAMES[torch.float16])
        for label, unknown in (("", ()), (" odd d_out", ("d_out",)))
    ]


def _variant(name: str, label: str, unknown: tuple[str, ...]) -> Variant:
    described = {
        key: f"tensordesc<{name}[1,1,{_BLOCK_TOKENS},{columns}],{_shared_layout()!r}>"
        for key, columns in (("y", _HALF), ("x", _WIDE), ("x_rest", _REST))
    }
    signature = {"F": "*fp32", **described, "blocks": "*i32", "spans": "*i32"}
    signature |= dict.fromkeys(("d_out", "d_in", "add"), "i32") | dict.fromkeys(_constexprs(), "constexpr")
    known = tuple(key for key in ("F", "blocks", "spans", "d_out", "d_in") if key not in unknown)
    return Variant(hopper_kernel, name, signature, _constexprs(), 4, 1, label, known, only_on="sm90")
