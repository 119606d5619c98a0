"""`sink_mass`: what a head's attention map says about sinks, without the map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tomfisher.ops.checks import ACTIVATIONS, valid_lengths
from tomfisher.ops.dispatch import Impl, register, resolve

_ROWS = 256  # queries whose attention the reference holds in memory at one time


class SinkMass(NamedTuple):
    """Statistics of the attention maps, zero at positions beyond a sequence's length.

    Attributes:
        first_mass: `[B, H, T]` float32, probability that each query position gives to the first keys.
        entropy: `[B, H, T]` float32, entropy of each query position's weights, in nats.
        column_mean: `[B, H, T]` float32, mean weight that each key position j gets, over the queries t >= j
            (all queries where not causal). A key is a sink if this exceeds a threshold such as 0.3.
    """

    first_mass: Tensor
    entropy: Tensor
    column_mean: Tensor


def sink_mass(
    q: Tensor,
    k: Tensor,
    scale: float,
    causal: bool = True,
    lengths: Sequence[int] | Tensor | None = None,
    first: int = 1,
    slopes: Tensor | None = None,
    window: int | None = None,
    impl: Impl = "auto",
) -> SinkMass:
    """Sum up the attention map of queries and keys; the `[T, T]` map is not stored.

    Equivalent PyTorch, without padding, slopes and window::

        scores = q.float() @ k.float().repeat_interleave(H // H_kv, dim=1).mT * scale
        A = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
        first_mass = A[..., :first].sum(-1)
        entropy = torch.special.entr(A).sum(-1)
        column_mean = A.sum(-2) / torch.arange(T, 0, -1)

    Args:
        q: queries after the rotation, `[B, H, T, D]` with any strides; float16, bfloat16 or float32.
        k: keys after the rotation, `[B, H_kv, T, D]`, the same dtype and device; H is a multiple of H_kv, and
            consecutive query heads share a key head.
        scale: factor of the scores, usually `D**-0.5`.
        causal: whether a query sees only keys up to its own position.
        lengths: valid leading positions of each sequence; None: all.
        first: how many leading keys count as the first.
        slopes: ALiBi, float32 `[H]`: `-slope·(t - j)` is added to the scores. Causal only.
        window: how many last keys, its own included, a query sees; None: all. Causal only.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        A `SinkMass` on the device of q.

    Raises:
        TypeError: dtypes differ or are others than those above.
        ValueError: shapes, devices, lengths, first, slopes or window do not fit.

    Source:
        Sink metric: Gu et al., When Attention Sink Emerges in Language Models (arXiv 2410.10781).
    """
    _check(q, k, first, causal, slopes, window)
    counts = valid_lengths(lengths, q.shape[0], q.shape[2])
    bias = None if slopes is None else slopes.detach().contiguous()
    return SinkMass(*_op(q.detach(), k.detach(), scale, causal, counts, first, bias, window, impl))


def _check(q: Tensor, k: Tensor, first: int, causal: bool, slopes: Tensor | None, window: int | None) -> None:
    if q.dtype != k.dtype or q.dtype not in ACTIVATIONS:
        raise TypeError(f"q and k must share float16, bfloat16 or float32, got {q.dtype} and {k.dtype}.")
    if q.device != k.device:
        raise ValueError(f"q and k must be on one device, got {q.device} and {k.device}.")
    if q.ndim != 4 or k.ndim != 4 or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(
            f"q must be [B, H, T, D] and k [B, H_kv, T, D], got {tuple(q.shape)} and {tuple(k.shape)}."
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"q's {q.shape[1]} heads must be a multiple of k's, got {k.shape[1]}.")
    if first < 1:
        raise ValueError(f"first must be at least 1 (key 0 alone), got {first}.")
    if not causal and (slopes is not None or window is not None):
        raise ValueError("slopes and window are defined for causal attention; drop them or set causal=True.")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 (the query's own position), got {window}.")
    if slopes is None:
        return
    if slopes.dtype != torch.float32 or slopes.shape != (q.shape[1],) or slopes.device != q.device:
        raise ValueError(
            f"slopes must be float32 [{q.shape[1]}] (one per query head) on {q.device}, "
            f"got {slopes.dtype} {tuple(slopes.shape)} on {slopes.device}."
        )


@torch.library.custom_op("tomfisher::sink_mass", mutates_args=())
def _op(
    q: Tensor,
    k: Tensor,
    scale: float,
    causal: bool,
    lengths: Sequence[int],
    first: int,
    slopes: Tensor | None,
    window: int | None,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    _, run = resolve("sink_mass", impl, q.device)
    first_mass, entropy, column_mean = run(q, k, scale, causal, lengths, first, slopes, window)
    return first_mass, entropy, column_mean


@_op.register_fake
def _(q: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    first_mass, entropy, column_mean = (q.new_empty(q.shape[:3], dtype=torch.float32) for _ in range(3))
    return first_mass, entropy, column_mean


@register("sink_mass", "reference")
def _reference(
    q: Tensor,
    k: Tensor,
    scale: float,
    causal: bool,
    lengths: Sequence[int],
    first: int,
    slopes: Tensor | None,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention to the first keys, entropy of rows and mean of columns, in float32.

    Args:
        q: `[B, H, T, D]`.
        k: `[B, H_kv, T, D]`.
        scale: of the scores.
        causal: whether queries see only keys up to their own position.
        lengths: valid positions of each sequence.
        first: how many leading keys count as the first.
        slopes: None or `[H]`, the bias is `-slope·(t - j)`.
        window: None, or how many last keys a query sees.

    Returns:
        First mass, entropy and column mean, `[B, H, T]` each, zero beyond the lengths.
    """
    B, H, T, _ = q.shape
    first_mass, entropy, column_mean = (
        torch.zeros(B, H, T, dtype=torch.float32, device=q.device) for _ in range(3)
    )
    for b, length in enumerate(lengths):
        keys = k[b, :, :length].float().repeat_interleave(H // k.shape[1], dim=0)
        j = torch.arange(length, device=q.device)
        for low in range(0, length, _ROWS):
            rows = slice(low, min(low + _ROWS, length))
            back = j[rows, None] - j
            scores = q[b, :, rows].float() @ keys.mT * scale
            if slopes is not None:
                scores = scores - slopes[:, None, None] * back
            if causal:
                hidden = (back < 0) | (back >= (length if window is None else window))
                scores = scores.masked_fill(hidden, -torch.inf)
            weights = scores.softmax(-1)
            first_mass[b, :, rows] = weights[..., :first].sum(-1)
            entropy[b, :, rows] = torch.special.entr(weights).sum(-1)
            column_mean[b, :, :length] += weights.sum(-2)
        column_mean[b, :, :length] /= length - j if causal else length
    return first_mass, entropy, column_mean
