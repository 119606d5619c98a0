"""Definition of `sink_mass`: softmax of some rows at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tomfisher.ops.dispatch import register

_ROWS = 256  # queries whose attention is in memory at one time


@register("sink_mass", "reference")
def sink_mass_reference(
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
