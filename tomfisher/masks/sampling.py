"""Positions drawn uniformly without replacement, in memory proportional to how many are drawn."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def generator_of(text: str) -> np.random.Generator:
    """Random numbers that are a function of a text."""
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def sample_positions(numel: int, k: int, seed: int, name: str) -> Tensor:
    """Draw k of the positions 0 … numel-1, every subset of size k being equally likely.

    Args:
        numel: number of positions to draw from.
        k: number to draw, 0 to `numel`.
        seed: any integer.
        name: whose positions they are; tensors of one size get different draws.

    Returns:
        `[k]` int64, sorted: a pure function of the arguments.
    """
    generator = generator_of(f"{seed}:{numel}:{k}:{name}")
    if 2 * k <= numel:
        return torch.from_numpy(_distinct(generator, numel, k))
    left_out = _distinct(generator, numel, numel - k)
    chosen = np.ones(numel, dtype=bool)
    chosen[left_out] = False
    return torch.from_numpy(np.flatnonzero(chosen).astype(np.int64))


def _distinct(generator: np.random.Generator, numel: int, k: int) -> np.ndarray:
    """The first k distinct numbers of a uniform sequence, sorted.

    Each round draws exactly as many as are missing, so no draw ever has to be thrown away and the set is
    the first k distinct values: uniform over all subsets.
    """
    drawn = np.empty(0, dtype=np.int64)
    while len(drawn) < k:
        more = generator.integers(0, numel, size=k - len(drawn), dtype=np.int64)
        drawn = np.unique(np.concatenate([drawn, more]))
    return drawn
