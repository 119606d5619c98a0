"""Whole rotary pairs dealt anew among the frequencies: a null hypothesis that lets entries of one row go together."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 999


def dealt(counts: Tensor, chosen: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Masked entries in chosen pairs when each head's pairs are shuffled, again and again.

    Args:
        counts: int64 `[heads, P]`, masked entries of each pair.
        chosen: for each kind of rows a bool `[heads, P]`.
        seed: any integer.

    Returns:
        For each kind int64 `[999]`, summed over the heads; all kinds see the same shuffles.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(ROUNDS, *counts.shape, generator=generator).argsort(-1)
    shuffled = counts.expand(ROUNDS, -1, -1).gather(2, order)
    return {rows: (shuffled * pairs).sum((1, 2)) for rows, pairs in chosen.items()}


def two_sided(found: int, null: Tensor) -> float:
    """Monte-Carlo p of a count, twice the smaller tail: (1 + #{null <= found}) / 1000 or (1 + #{null >= found}) / 1000.

    Args:
        found: the count.
        null: what `dealt` gave.
    """
    tails = (int((null <= found).sum()), int((null >= found).sum()))
    return min(1.0, 2 * (1 + min(tails)) / (1 + len(null)))
