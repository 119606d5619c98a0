"""`F[o,i] += Σ_n (Σ_{t∈n} Y[t,o]·X[t,i])²`: one program per tile of F, both sums in registers, no atomics.

A program walks the token blocks of all segments in one loop. The product of a segment grows in a float32 tile;
at the segment's last block the tile is squared into a second one and starts again from zero. F is read and written
once, at the end. Small F take several programs per tile, each with its own segments, and an ordered sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import schedule, tuning
from .launch import FUSED, on_device
from .tuning import Config, Problem
from .variant import Variant

PRECISIONS = ("ieee", "tf32x3", "tf32")  # of products of float32 operands, the first one by default
_PRECISIONS_EVERYWHERE = ("ieee", "tf32")  # and not on NVIDIA's chips alone
_ALIGN = 16  # elements, and bytes of an address: what Triton takes as proof that 16-byte copies are safe
_MAX_ROWS = 2**31 - 1
_MAX_ROW_STRIDE = 1 << 23  # offsets inside a tile of at most 128 rows, of F too, are 32-bit
_BAND = 8  # tiles of d_out that share their columns of X in the L2 cache
_REDUCE = 1024
# what may be no multiple of 16 in a launch, for tiles that take any row of F and for those that do not
_ANYWHERE: tuple[tuple[str, ...], ...] = ((), ("d_out", "d_in"), ("F",))
_ALIGNED_ROWS: tuple[tuple[str, ...], ...] = ((), ("d_out",))
_LABELS = {(): "", ("d_out",): " odd d_out", ("d_out", "d_in"): " odd", ("F",): " unaligned F"}
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@triton.jit
def _tile(work, tiles_out, tiles_in, BAND: tl.constexpr):
    """Tile coordinates in bands of BAND rows, walked down the columns, so that neighbours share operands."""
    band = work // (BAND * tiles_in)
    height = min(tiles_out - band * BAND, BAND)
    within = work % (BAND * tiles_in)
    return band * BAND + within % height, within // height


@triton.jit
def _prefetch(
    tile, rows, columns, d_in, add, BLOCK_OUT: tl.constexpr, LINES: tl.constexpr, LINE: tl.constexpr
):
    """Ask the L2 cache for a tile of F that will be read, of which `rows` and `columns` exist; a hint in PTX."""
    if add != 0:
        o = tl.minimum(tl.arange(0, BLOCK_OUT), rows - 1)
        i = tl.minimum(tl.arange(0, LINES) * LINE, columns - 1)
        address = (tile + o[:, None] * d_in + i[None, :]).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [address], tl.int32, is_pure=False, pack=1
        )


@triton.jit(do_not_specialize=["add"])
def squared_gradient_kernel(
    F,
    Y,
    X,
    blocks,
    spans,
    d_out,
    d_in,
    y_width,
    x_width,
    y_row,
    x_row,
    add,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BAND: tl.constexpr,
    PRECISION: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """One tile of one slice of F: see the module. `add` = 0 overwrites F instead of adding to it."""
    tiles_out = tl.cdiv(d_out, BLOCK_OUT)
    tiles_in = tl.cdiv(d_in, BLOCK_IN)
    span = tl.program_id(0) // (tiles_out * tiles_in)
    tile_out, tile_in = _tile(tl.program_id(0) % (tiles_out * tiles_in), tiles_out, tiles_in, BAND)
    first_out = tile_out * BLOCK_OUT
    first_in = tile_in * BLOCK_IN
    slice_ = tl.load(spans + 3 * span).to(tl.int64)
    begin = tl.load(spans + 3 * span + 1)
    end = tl.load(spans + 3 * span + 2)

    tile = F + (slice_ * d_out + first_out) * d_in + first_in
    if PREFETCH:
        _prefetch(tile, d_out - first_out, d_in - first_in, d_in, add, BLOCK_OUT, (BLOCK_IN + 31) // 32, 32)

    t = tl.arange(0, BLOCK_TOKENS)
    o = tl.arange(0, BLOCK_OUT)
    i = tl.arange(0, BLOCK_IN)
    y_offsets = o[:, None] + t[None, :] * y_row
    x_offsets = t[:, None] * x_row + i[None, :]
    y_columns = (first_out + o < y_width)[:, None]
    x_columns = (first_in + i < x_width)[None, :]

    gradient = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    squares = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    # A block's table entry is read one iteration ahead. Read in its own iteration, it would be what the software
    # pipeline waits for, and the operands would lose their buffers.
    row = tl.load(blocks + 2 * begin)
    signed_rows = tl.load(blocks + 2 * begin + 1)
    for block in range(begin, end):
        next_row = tl.load(blocks + 2 * block + 2)
        next_signed_rows = tl.load(blocks + 2 * block + 3)
        rows = tl.abs(signed_rows)
        # both operands are masked: beside the zero of only one of them a NaN would survive the product
        y = tl.load(
            Y + row.to(tl.int64) * y_row + first_out + y_offsets,
            mask=(t < rows)[None, :] & y_columns,
            other=0.0,
        )
        x = tl.load(
            X + row.to(tl.int64) * x_row + first_in + x_offsets,
            mask=(t < rows)[:, None] & x_columns,
            other=0.0,
        )
        gradient = tl.dot(y, x, gradient, input_precision=PRECISION)
        # The sign that ends a segment is part of the row count: a load for it alone would be pipelined by Triton 3.6
        # in place of the operands.
        if signed_rows < 0:
            squares = tl.fma(gradient, gradient, squares)
            # always zero; a zero constant here costs Hopper a third more instructions at every segment's end
            gradient = tl.where(rows < 0, gradient, 0.0)
        row = next_row
        signed_rows = next_signed_rows

    inside = (first_out + o < d_out)[:, None] & (first_in + i < d_in)[None, :]
    pointers = tile + (o[:, None] * d_in + i[None, :])
    if add != 0:
        squares += tl.load(pointers, mask=inside, other=0.0)
    tl.store(pointers, squares, mask=inside)


@triton.jit
def add_parts_kernel(F, parts, size, splits, BLOCK: tl.constexpr):
    """`F[e] += parts[e, 0] + parts[e, 1] + …`, in that order, for slices of `size` entries."""
    chunks = tl.cdiv(size, BLOCK)
    slice_ = tl.program_id(0).to(tl.int64) // chunks
    offsets = tl.program_id(0).to(tl.int64) % chunks * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(splits):
        total += tl.load(parts + (slice_ * splits + part) * size + offsets, mask=inside, other=0.0)
    pointers = F + slice_ * size + offsets
    tl.store(pointers, tl.load(pointers, mask=inside, other=0.0) + total, mask=inside)


def squared_gradient(
    F: Tensor,
    grad_output: Tensor,
    input: Tensor,
    bounds: schedule.Bounds | Tensor,
    targets: Sequence[int] | Tensor | None = None,
    *,
    config: Config | None = None,
    splits: int | None = None,
    precision: str = "ieee",
) -> None:
    """Add the squared gradient of every segment to F.

    Args:
        F: float32, contiguous, `[d_out, d_in]`, or `[E, d_out, d_in]` with `targets`. Changed in place.
        grad_output: `[N, d_out]`, any strides.
        input: `[N, d_in]`, same dtype and device. Other dtypes than bfloat16, float16 and float32 are rounded to
            float32 first, as the definition of the operation does.
        bounds: first and last-plus-one row of each segment, which do not overlap; or an integer tensor `[S, 2]` on
            F's device, for which nothing waits and whose numbers nothing checks.
        targets: slice of F that each segment adds to; a tensor on F's device where bounds are one.
        config: tile shape; None picks by shape.
        splits: programs per tile, each with its own segments; None picks by shape.
        precision: of products of float32 operands: "ieee" multiplies exactly, "tf32x3" on tensor cores with each
            operand split into two of 10 bits (exactly on AMD), "tf32" on tensor cores with 10 bits.

    Raises:
        RuntimeError: the tensors are not on a GPU and the interpreter is off.
        ValueError: more than 2³¹ - 1 rows, or 2²³ columns of an operand.
    """
    with on_device(F):
        sizes_checked(F, grad_output)
        if 0 in (F.numel(), grad_output.shape[0], len(bounds)):
            return
        problem = problem_of(F, grad_output, len(bounds), precision)
        if grad_output.dtype != problem.dtype:
            grad_output, input = grad_output.to(problem.dtype), input.to(problem.dtype)
        Y, X = aligned_rows(grad_output), aligned_rows(input)
        config = config or tuning.pick(problem)
        splits = splits or tuning.splits(problem, config)
        work = schedule.build(F, problem.rows, bounds, targets, config.block_tokens, splits)
        _launch(F, Y, X, work, config, problem.precision)


def tune(
    F: Tensor,
    grad_output: Tensor,
    input: Tensor,
    bounds: schedule.Bounds | Tensor,
    targets: Sequence[int] | Tensor | None = None,
    save: bool = False,
) -> Config:
    """Time the shipped tile shapes on these operands, on a scratch F of the same shape, and return the fastest.

    Args:
        F: as for `squared_gradient`; neither read nor written.
        grad_output: as for `squared_gradient`.
        input: as for `squared_gradient`.
        bounds: as for `squared_gradient`.
        targets: as for `squared_gradient`.
        save: let later calls on this GPU with this dtype, these sides of F and about as many slices and tokens
            per segment, in later processes too, use the answer. Their sums may then differ in the last bits from
            those of another GPU.

    Returns:
        The fastest configuration.
    """
    scratch = torch.zeros_like(F)

    def measure(config: Config) -> float:
        return triton.testing.do_bench(
            lambda: squared_gradient(scratch, grad_output, input, bounds, targets, config=config)
        )

    with on_device(F):
        return tuning.tune(problem_of(F, grad_output, len(bounds)), measure, save)


def variants() -> list[Variant]:
    """Every dtype and shipped configuration that `squared_gradient` launches."""
    tiles = [
        _variant(dtype, config, precision, unknown)
        for dtype, name in NAMES.items()
        for config in tuning.shipped(dtype)
        for precision in (PRECISIONS if name == "fp32" else PRECISIONS[:1])
        if tuning.fits_precision(config, precision)
        for unknown in (_ANYWHERE if tuning.fits_rows(config, 1) else _ALIGNED_ROWS)
    ]
    add_parts = Variant(
        add_parts_kernel,
        "fp32",
        {
            "F": "*fp32",
            "parts": "*fp32",
            "size": "i64",
            "splits": "i32",
            "BLOCK": "constexpr",
        },
        {"BLOCK": _REDUCE},
        label=str(_REDUCE),
        divisible_by_16=("F", "parts", "size"),
    )
    return [*tiles, add_parts]


def problem_of(F: Tensor, grad_output: Tensor, segments: int, precision: str = "ieee") -> Problem:
    """What the choice of a configuration depends on: shapes, not the numbers in bounds or targets."""
    dtype = grad_output.dtype if grad_output.dtype in NAMES else torch.float32
    d_out, d_in = F.shape[-2:]
    return Problem(
        d_out,
        d_in,
        dtype,
        grad_output.shape[0],
        segments,
        F.shape[0] if F.ndim == 3 else 1,
        F.data_ptr() % _ALIGN == 0,
        tuning.gpu_name(F.device),
        precision if dtype == torch.float32 else "ieee",
    )


def _launch(F: Tensor, Y: Tensor, X: Tensor, work: schedule.Schedule, config: Config, precision: str) -> None:
    d_out, d_in = F.shape[-2:]

    def launch(target: Tensor, add: int) -> None:
        squared_gradient_kernel[(work.spans.shape[0] * config.tiles(d_out, d_in),)](
            target,
            Y,
            X,
            work.blocks,
            work.spans,
            d_out,
            d_in,
            Y.shape[1],
            X.shape[1],
            Y.stride(0),
            X.stride(0),
            add,
            **_constexprs(config, precision, nvidia=F.is_cuda and not torch.version.hip),
            num_warps=config.warps,
            num_stages=tuning.pipeline(config, amd=bool(torch.version.hip)),
            **FUSED,
        )

    accumulate(F, work, launch)


def accumulate(F: Tensor, work: schedule.Schedule, launch: Callable[[Tensor, int], None]) -> None:
    """Have a kernel add to F; with splits it fills a workspace of one part per span, and these are added in order.

    Args:
        F: as for `squared_gradient`.
        work: the schedule.
        launch: called with what the kernel writes, F or the workspace, and 1 where it adds to it, 0 where it
            overwrites it.
    """
    if work.splits == 1:
        launch(F, 1)
        return
    parts = F.new_empty(len(work.spans), *F.shape[-2:])
    launch(parts, 0)
    size = F.shape[-2] * F.shape[-1]
    grid = (triton.cdiv(size, _REDUCE) * (len(work.spans) // work.splits),)
    add_parts_kernel[grid](F, parts, size, work.splits, BLOCK=_REDUCE, **FUSED)


def sizes_checked(F: Tensor, grad_output: Tensor, most_rows: int = _MAX_ROWS) -> None:
    """Refuse more rows than the tables number, and sides of F whose offsets inside a tile are no 32-bit numbers."""
    if grad_output.shape[0] > most_rows:
        raise ValueError(
            f"squared_gradient_ takes at most {most_rows} rows in one call, got {grad_output.shape[0]}. "
            "Split the batch."
        )
    if max(F.shape[-2:]) > _MAX_ROW_STRIDE:
        raise ValueError(
            f"squared_gradient_ takes at most {_MAX_ROW_STRIDE} columns of an operand, got {max(F.shape[-2:])}."
        )


def _constexprs(config: Config, precision: str, nvidia: bool) -> dict[str, int | str]:
    return {
        "BLOCK_OUT": config.block_out,
        "BLOCK_IN": config.block_in,
        "BLOCK_TOKENS": config.block_tokens,
        "BAND": _BAND,
        "PRECISION": precision if nvidia or precision in _PRECISIONS_EVERYWHERE else "ieee",
        "PREFETCH": nvidia,
    }


def aligned_rows(rows: Tensor) -> Tensor:
    """The operand itself where 16-byte copies of its rows are safe, else a copy padded with columns of zeros."""
    width, stride = rows.shape[1], rows.stride(0)
    if (
        rows.stride(1) == 1
        and width % _ALIGN == 0
        and stride % _ALIGN == 0
        and stride <= _MAX_ROW_STRIDE
        and rows.data_ptr() % _ALIGN == 0
    ):
        return rows
    copy = rows.new_zeros(rows.shape[0], triton.cdiv(width, _ALIGN) * _ALIGN)
    copy[:, :width] = rows
    return copy


def _variant(dtype: torch.dtype, config: Config, precision: str, unknown: tuple[str, ...]) -> Variant:
    """`unknown`: a key of `_LABELS`."""
    name = NAMES[dtype]
    constexprs = _constexprs(config, precision, nvidia=False)
    pointers = {"F": "*fp32", "Y": f"*{name}", "X": f"*{name}", "blocks": "*i32", "spans": "*i32"}
    sizes = ("d_out", "d_in", "y_width", "x_width", "y_row", "x_row")
    return Variant(
        squared_gradient_kernel,
        name,
        {**pointers, **dict.fromkeys((*sizes, "add"), "i32"), **dict.fromkeys(constexprs, "constexpr")},
        constexprs,
        num_warps=config.warps,
        num_stages=config.stages,
        label=f"{config}{'' if precision == 'ieee' else f' {precision}'}{_LABELS[unknown]}",
        divisible_by_16=tuple(name for name in (*pointers, *sizes) if name not in unknown),
        on_cuda=_constexprs(config, precision, nvidia=True),
        amd_stages=tuning.pipeline(config, amd=True),
    )
