"""Attention to the first keys, entropy of rows and mean of columns, without an attention map in memory.

The first kernel goes over the keys of a block of queries (softmax statistics of each row), the second over the
queries of a block of keys (column sums). Each output entry has one writer and one order of addition.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import FUSED, on_device, sent
from .variant import Variant

_TRITON_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
WARPS = 4
STAGES = 2


@triton.jit
def score_block(
    Q, K, t0, j0, length, stride_qt, stride_kt, D,
    scale, slope, window,
    CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scores of the queries from `t0` against the keys from `j0`; -inf where they do not meet."""
    row = tl.arange(0, BLOCK_Q)[:, None]
    column = tl.arange(0, BLOCK_K)[None, :]
    # only these scalars are 64 bits wide
    Q += t0.to(tl.int64) * stride_qt
    K += j0.to(tl.int64) * stride_kt
    score = tl.zeros([BLOCK_Q, BLOCK_K], dtype=tl.float32)
    for low in range(0, D, BLOCK_D):
        d = low + tl.arange(0, BLOCK_D)
        q_inside = (row < length - t0) & (d < D)[None, :]
        k_inside = (column < length - j0) & (d < D)[:, None]
        q = tl.load(Q + row * stride_qt + d[None, :], mask=q_inside, other=0.0)
        k = tl.load(K + column * stride_kt + d[:, None], mask=k_inside, other=0.0)
        score = tl.dot(q, k, score, input_precision="ieee")
    back = (t0 - j0) + row - column
    score = score * scale - slope * back.to(tl.float32)
    meet = (row < length - t0) & (column < length - j0)
    if CAUSAL:
        meet = meet & (back >= 0) & (back < window)
    return tl.where(meet, score, float("-inf"))


@triton.jit
def rows_kernel(
    Q, K, Lengths, Slopes, FirstMass, Entropy, LogSum,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt,
    T, D, heads, group, first, window, scale,
    CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Per query: attention to the keys before `first`, entropy in nats, and log of the sum of exponentials."""
    blocks = tl.cdiv(T, BLOCK_Q)
    both = (tl.program_id(0) // blocks).to(tl.int64)
    batch = both // heads
    head = both % heads
    length = tl.load(Lengths + batch)
    slope = tl.load(Slopes + head)
    Q += batch * stride_qb + head * stride_qh
    K += batch * stride_kb + (head // group) * stride_kh
    low = tl.program_id(0) % blocks * BLOCK_Q
    rows = low + tl.arange(0, BLOCK_Q)
    start = low * 0
    stop = length
    if CAUSAL:
        start = tl.maximum(low - window + 1, 0) // BLOCK_K * BLOCK_K
        stop = tl.minimum(length, low + BLOCK_Q)
    if low >= length:
        stop = start
    # finite, so that differences of maxima stay finite while a row has met no key
    highest = tl.full([BLOCK_Q], -1e38, dtype=tl.float32)
    total = tl.zeros([BLOCK_Q], dtype=tl.float32)
    weighted = tl.zeros([BLOCK_Q], dtype=tl.float32)
    leading = tl.zeros([BLOCK_Q], dtype=tl.float32)
    while start < stop:
        score = score_block(
            Q, K, low, start, length, stride_qt, stride_kt, D,
            scale, slope, window, CAUSAL, BLOCK_Q, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        raised = tl.maximum(highest, tl.max(score, 1))
        drop = highest - raised
        shrink = tl.exp(drop)
        e = tl.exp(score - raised[:, None])
        above = tl.where(e > 0, score - raised[:, None], 0.0)  # not -inf, which times 0 is NaN
        # Σ e·(s - max): moving the maximum by `drop` adds drop·Σ e
        weighted = shrink * (weighted + drop * total) + tl.sum(e * above, 1)
        total = shrink * total + tl.sum(e, 1)
        leading = shrink * leading + tl.sum(
            tl.where((start + tl.arange(0, BLOCK_K))[None, :] < first, e, 0.0), 1
        )
        highest = raised
        start += BLOCK_K
    valid = rows < length
    total = tl.where(valid, total, 1.0)
    out = both * T + rows
    tl.store(FirstMass + out, tl.where(valid, leading / total, 0.0), mask=rows < T)
    tl.store(Entropy + out, tl.where(valid, tl.log(total) - weighted / total, 0.0), mask=rows < T)
    tl.store(LogSum + out, highest + tl.log(total), mask=rows < T)


@triton.jit
def columns_kernel(
    Q, K, Lengths, Slopes, LogSum, ColumnMean,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt,
    T, D, heads, group, window, scale,
    CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Per key: mean attention weight over the queries that may look back to it."""
    blocks = tl.cdiv(T, BLOCK_K)
    both = (tl.program_id(0) // blocks).to(tl.int64)
    batch = both // heads
    head = both % heads
    length = tl.load(Lengths + batch)
    slope = tl.load(Slopes + head)
    Q += batch * stride_qb + head * stride_qh
    K += batch * stride_kb + (head // group) * stride_kh
    low = tl.program_id(0) % blocks * BLOCK_K
    columns = low + tl.arange(0, BLOCK_K)
    start = low * 0
    stop = length
    if CAUSAL:
        start = low // BLOCK_Q * BLOCK_Q
        stop = tl.minimum(length, low + BLOCK_K - 1 + window)
    if low >= length:
        stop = start
    mass = tl.zeros([BLOCK_K], dtype=tl.float32)
    while start < stop:
        rows = start + tl.arange(0, BLOCK_Q)
        score = score_block(
            Q, K, start, low, length, stride_qt, stride_kt, D,
            scale, slope, window, CAUSAL, BLOCK_Q, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        log_sum = tl.load(LogSum + both * T + rows, mask=rows < length, other=0.0)
        mass += tl.sum(tl.exp(score - log_sum[:, None]), 0)
        start += BLOCK_Q
    queries = length
    if CAUSAL:
        queries = length - columns
    valid = columns < length
    mean = mass / tl.where(valid, queries, 1).to(tl.float32)
    tl.store(ColumnMean + both * T + columns, tl.where(valid, mean, 0.0), mask=columns < T)


def sink_mass(
    q: Tensor,
    k: Tensor,
    scale: float,
    causal: bool,
    lengths: Sequence[int],
    first: int,
    slopes: Tensor | None,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of the attention map `softmax(scale·q·kᵀ + bias)`.

    Args:
        q: `[B, H, T, D]`, any strides; float16, bfloat16 or float32.
        k: `[B, H_kv, T, D]`, the same dtype; H is a multiple of H_kv.
        scale: of the scores.
        causal: whether queries see only keys up to their own position.
        lengths: valid positions of each sequence.
        first: how many leading keys count as the first.
        slopes: None or float32 `[H]`, the ALiBi bias is `-slope·(t - j)`.
        window: None, or the number of last keys that a query sees.

    Returns:
        First mass, entropy and column mean, float32 `[B, H, T]`, zero beyond the lengths.
    """
    q, k = _packed(q), _packed(k)
    B, H, T, D = q.shape
    first_mass, entropy, log_sum, column_mean = (
        torch.empty(B, H, T, dtype=torch.float32, device=q.device) for _ in range(4)
    )
    sizes = _sizes(q.dtype, D)
    counts = sent(np.array(lengths, dtype=np.int32), q.device)
    bias = q.new_zeros(H, dtype=torch.float32) if slopes is None else slopes
    shared = (*q.stride()[:3], *k.stride()[:3], T, D, H, H // k.shape[1])
    reach = T if window is None else min(window, T)  # beyond T it changes nothing but could overflow 32 bits
    if first_mass.numel():
        with on_device(q):
            rows_kernel[_grid(T, sizes["BLOCK_Q"], B * H)](
                q, k, counts, bias, first_mass, entropy, log_sum, *shared, first, reach, scale,
                CAUSAL=causal, **sizes, num_warps=WARPS, num_stages=STAGES, **FUSED,
            )  # fmt: skip
            columns_kernel[_grid(T, sizes["BLOCK_K"], B * H)](
                q, k, counts, bias, log_sum, column_mean, *shared, reach, scale,
                CAUSAL=causal, **sizes, num_warps=WARPS, num_stages=STAGES, **FUSED,
            )  # fmt: skip
    return first_mass, entropy, column_mean


def _grid(T: int, block: int, heads: int) -> tuple[int]:
    """Programs on one axis, the blocks of a head one after another: the other axes end at 65,535."""
    return (triton.cdiv(T, block) * heads,)


def _packed(x: Tensor) -> Tensor:
    """The tensor if its heads can be read 16 bytes at a time, else a copy with zeros up to a multiple of 16.

    Entries addressed one by one take more registers than a thread has. Zeros change no score.
    """
    *strides, beside = x.stride()
    wide = beside == 1 and x.data_ptr() % 16 == 0 and not any(n % 16 for n in (*strides, x.shape[3]))
    if wide and x.stride(2) * 128 < 2**31:  # offsets within a program are 32-bit
        return x
    copy = x.new_zeros(*x.shape[:3], triton.cdiv(x.shape[3], 16) * 16)
    copy[..., : x.shape[3]] = x
    return copy


def _sizes(dtype: torch.dtype, D: int) -> dict[str, int]:
    """Tile of scores and slice of the head; float32 products are no tensor-core work and take smaller ones.

    Heads of 32 take two slices of 16: with one of 32 Triton 3.6 spills on sm80.
    """
    if dtype == torch.float32:
        return {"BLOCK_Q": 32, "BLOCK_K": 32, "BLOCK_D": 32}
    return {"BLOCK_Q": 64, "BLOCK_K": 64, "BLOCK_D": 16 if D <= 32 else 64}


def variants() -> list[Variant]:
    """Everything that `sink_mass` launches: a head has a multiple of 16 dimensions there."""
    made = []
    strides = [f"stride_{x}{axis}" for x in "qk" for axis in "bht"]
    for dtype, name in _TRITON_TYPES.items():
        inputs = {"Q": f"*{name}", "K": f"*{name}", "Lengths": "*i32", "Slopes": "*fp32"}
        inputs |= dict.fromkeys((*strides, "T", "D", "heads", "group", "window"), "i32") | {"scale": "fp32"}
        rows = dict.fromkeys(("FirstMass", "Entropy", "LogSum"), "*fp32") | {"first": "i32"}
        columns = dict.fromkeys(("LogSum", "ColumnMean"), "*fp32")
        shapes = list(dict.fromkeys(tuple(_sizes(dtype, D).items()) for D in (16, 64)))
        for kernel, outputs in ((rows_kernel, rows), (columns_kernel, columns)):
            for shape, causal in itertools.product(shapes, (True, False)):
                values: dict[str, Any] = {"CAUSAL": causal, **dict(shape)}
                signature = inputs | outputs | dict.fromkeys(values, "constexpr")
                label = f"{'x'.join(str(size) for _, size in shape)} {'causal' if causal else 'full'}"
                aligned = ("Q", "K", "D", *strides)
                made.append(Variant(kernel, name, signature, values, WARPS, STAGES, label, aligned))
    return made
