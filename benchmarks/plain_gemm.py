# mypy: allow-untyped-defs
"""A plain Triton matrix product with the tile of `squared_gradient_`: what its kernel could reach without squares.

`D = Yᵀ X` over all tokens, one accumulator per tile, float32 result. It walks tiles and tokens as the kernel
does, but knows of no samples, so the distance to it is what samples and squares cost.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BAND = 8


@triton.jit
def gemm_kernel(
    D,
    Y,
    X,
    tokens,
    d_out,
    d_in,
    y_row,
    x_row,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of D."""
    tiles_out = tl.cdiv(d_out, BLOCK_OUT)
    tiles_in = tl.cdiv(d_in, BLOCK_IN)
    band = tl.program_id(0) // (BAND * tiles_in)
    height = min(tiles_out - band * BAND, BAND)
    within = tl.program_id(0) % (BAND * tiles_in)
    first_out = (band * BAND + within % height) * BLOCK_OUT
    first_in = (within // height) * BLOCK_IN
    t = tl.arange(0, BLOCK_TOKENS)
    o = first_out + tl.arange(0, BLOCK_OUT)
    i = first_in + tl.arange(0, BLOCK_IN)
    total = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    for row in range(0, tokens, BLOCK_TOKENS):
        start = tl.cast(row, tl.int64)
        inside = row + t < tokens
        y = tl.load(
            Y + start * y_row + o[:, None] + t[None, :] * y_row,
            mask=inside[None, :] & (o < d_out)[:, None],
            other=0.0,
        )
        x = tl.load(
            X + start * x_row + t[:, None] * x_row + i[None, :],
            mask=inside[:, None] & (i < d_in)[None, :],
            other=0.0,
        )
        total = tl.dot(y, x, total, input_precision=PRECISION)
    tl.store(
        D + o.to(tl.int64)[:, None] * d_in + i[None, :],
        total,
        mask=(o < d_out)[:, None] & (i < d_in)[None, :],
    )


def plain_gemm(D: Tensor, Y: Tensor, X: Tensor, config: Any) -> None:
    """`D = Yᵀ X`.

    Args:
        D: float32, contiguous, `[d_out, d_in]`; overwritten.
        Y: `[tokens, d_out]`, rows contiguous.
        X: `[tokens, d_in]`, rows contiguous, same dtype.
        config: a `tomfisher.kernels.tuning.Config`.
    """
    grid = (config.tiles(*D.shape),)
    gemm_kernel[grid](
        D,
        Y,
        X,
        Y.shape[0],
        *D.shape,
        Y.stride(0),
        X.stride(0),
        BLOCK_OUT=config.block_out,
        BLOCK_IN=config.block_in,
        BLOCK_TOKENS=config.block_tokens,
        BAND=_BAND,
        PRECISION="ieee",
        num_warps=config.warps,
        num_stages=config.stages if torch.version.hip is None else min(config.stages, 3),
    )
