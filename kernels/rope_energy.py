"""Energy and norm of every rotary frequency pair of queries or keys, summed over tokens in one read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import FUSED, on_device, sent
from .variant import Variant

CHUNK = 256  # tokens that one program adds up
_TILE = 2048  # pairs that one program holds at a time
WARPS = 4
_TRITON_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@triton.jit
def rope_energy_kernel(
    X,  # [B, T, H, D] by strides
    Lengths,  # [B] int64
    Partial,  # [B * chunks, 2, H, P] float32
    stride_b,
    stride_t,
    stride_h,
    stride_d,
    heads,
    pairs,
    chunks,
    INTERLEAVED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Sums of x_i² + x_j² and of its root over the valid tokens of one chunk, for one head."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    batch = row // chunks
    first = (row % chunks) * CHUNK
    left = tl.minimum(tl.load(Lengths + batch) - first, CHUNK).to(tl.int32)
    p = tl.arange(0, BLOCK_P)
    if INTERLEAVED:
        i = 2 * p * stride_d
        j = i + stride_d
    else:
        i = p * stride_d
        j = i + pairs * stride_d
    # 64-bit scalars, 32-bit vectors
    base = X + batch * stride_b + head * stride_h + first * stride_t
    energy = tl.zeros([BLOCK_P], dtype=tl.float32)
    norm = tl.zeros([BLOCK_P], dtype=tl.float32)
    for low in range(0, left, BLOCK_T):
        t = low + tl.arange(0, BLOCK_T)
        inside = (t < left)[:, None] & (p < pairs)[None, :]
        at = base + t[:, None] * stride_t
        x = tl.load(at + i[None, :], mask=inside, other=0.0).to(tl.float32)
        y = tl.load(at + j[None, :], mask=inside, other=0.0).to(tl.float32)
        both = x * x + y * y
        energy += tl.sum(both, 0)
        norm += tl.sum(tl.sqrt_rn(both), 0)
    out = Partial + (row * 2 * heads + head) * pairs + p
    tl.store(out, energy, mask=p < pairs)
    tl.store(out + heads * pairs, norm, mask=p < pairs)


def rope_energy(x: Tensor, pairs: int, interleaved: bool, lengths: Sequence[int]) -> Tensor:
    """Sum energies and norms of the pairs over the valid tokens.

    Args:
        x: `[B, T, H, D]`, any strides; float16, bfloat16 or float32.
        pairs: half the number of rotated dimensions.
        interleaved: whether pairs are neighbours rather than half the rotated dimensions apart.
        lengths: valid tokens of each sequence.

    Returns:
        float32 `[2, H, pairs]`: energy, norm.
    """
    B, T, H, _ = x.shape
    if max(x.stride(1), x.stride(3)) * max(CHUNK, 2 * pairs) >= 2**31:
        x = x.contiguous()  # offsets within a program are 32-bit
    chunks = triton.cdiv(T, CHUNK)
    partial = torch.empty(B * chunks, 2, H, pairs, dtype=torch.float32, device=x.device)
    if partial.numel():
        width = triton.next_power_of_2(pairs)
        with on_device(x):
            rope_energy_kernel[(B * chunks, H)](
                x,
                sent(np.array(lengths, dtype=np.int64), x.device),
                partial,
                *x.stride(),
                H,
                pairs,
                chunks,
                INTERLEAVED=interleaved,
                CHUNK=CHUNK,
                BLOCK_T=_rows(width),
                BLOCK_P=width,
                num_warps=WARPS,
                **FUSED,
            )
    # the order of the partial sums is fixed by the shapes
    return partial.sum(0, dtype=torch.float64).float()


def _rows(width: int) -> int:
    return max(1, min(CHUNK, _TILE // width))


def variants() -> list[Variant]:
    """Everything that `rope_energy` launches, for the usual head sizes, stored one entry after another."""
    made = []
    strides = ("stride_b", "stride_t", "stride_h")
    for name in _TRITON_TYPES.values():
        signature = {"X": f"*{name}", "Lengths": "*i64", "Partial": "*fp32"}
        signature |= dict.fromkeys((*strides, "heads", "pairs", "chunks"), "i32")
        signature |= dict.fromkeys(("stride_d", "INTERLEAVED", "CHUNK", "BLOCK_T", "BLOCK_P"), "constexpr")
        for width in (16, 32, 64, 128):
            for interleaved in (False, True):
                sizes = {"stride_d": 1, "INTERLEAVED": interleaved, "CHUNK": CHUNK}
                sizes |= {"BLOCK_T": _rows(width), "BLOCK_P": width}
                label = f"{width} pairs, {'interleaved' if interleaved else 'half'}"
                aligned = ("X", "Partial", "pairs", *strides)
                made.append(Variant(rope_energy_kernel, name, signature, sizes, WARPS, 3, label, aligned))
    return made
