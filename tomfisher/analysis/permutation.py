"""Permutation of whole rotary pairs among the frequencies: a null hypothesis that keeps entries of a row together."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ROUNDS = 9_999
_CHUNK = 1 << 24  # numbers that are shuffled at once


def permuted_counts(counts: Tensor, chosen: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Masked entries in chosen pairs under random permutations of each head's pairs.

    Args:
        counts: int64 `[heads, P]`, masked entries of each pair.
        chosen: for each kind of rows a bool `[heads, P]`.
        seed: any integer from 0 on.

    Returns:
        For each kind int64 `[9999]`, summed over the heads; all kinds see the same shuffles.
    """
    kept = counts.any(1)  # a head without entries has none in any permutation
    values = counts[kept].numpy().astype(np.float64)
    pairs = np.stack([which[kept].numpy().reshape(-1) for which in chosen.values()], axis=1).astype(
        np.float64
    )
    generator, counted = np.random.default_rng(seed), []
    rounds = max(1, _CHUNK // max(1, values.size))
    for start in range(0, ROUNDS, rounds):
        shuffled = np.repeat(values[None], min(rounds, ROUNDS - start), axis=0)
        generator.permuted(shuffled, axis=-1, out=shuffled)
        counted.append(shuffled.reshape(len(shuffled), -1) @ pairs)
    sums = torch.from_numpy(np.concatenate(counted)).round().long()
    return dict(zip(chosen, sums.T, strict=True))


def two_sided(count: int, null: Tensor) -> float:
    """Monte-Carlo p of a count, twice the smaller tail, itself among them: 2 · (1 + #{null <= count}) / (1 + n), or >=.

    Args:
        count: the count.
        null: the n counts of `permuted_counts`.
    """
    tails = (int((null <= count).sum()), int((null >= count).sum()))
    return min(1.0, 2 * (1 + min(tails)) / (1 + len(null)))
