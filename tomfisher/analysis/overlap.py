"""How much masks have in common, compared with random masks of the same sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from tomfisher.analysis.hypergeometric import Draw, tails
from tomfisher.analysis.jsonable import jsonable
from tomfisher.masks import SparseMask
from tomfisher.masks.store import some
from tomfisher.runtime.torch_state import plain_torch


@dataclass(frozen=True)
class PairOverlap:
    """Two masks of one model.

    Attributes:
        a: name of the first.
        b: name of the second.
        masked_a: entries of the first.
        masked_b: entries of the second.
        shared: entries of both.
        expected: its mean if both were random with the same count in every tensor.
        p: two-sided, of `shared` under that law (`tomfisher.analysis.hypergeometric`).
    """

    a: str
    b: str
    masked_a: int
    masked_b: int
    shared: int
    expected: float
    p: float

    @property
    def jaccard(self) -> float:
        """|a ∩ b| / |a ∪ b|; NaN where both are empty."""
        return self._jaccard(self.shared)

    @property
    def expected_jaccard(self) -> float:
        """The Jaccard index at the expected number of shared entries (nearly the expected index: it is convex)."""
        return self._jaccard(self.expected)

    def _jaccard(self, shared: float) -> float:
        union = self.masked_a + self.masked_b - shared
        return shared / union if union else float("nan")


@dataclass(frozen=True)
class Overlap:
    """Every pair of some masks; made by `overlap`."""

    pairs: tuple[PairOverlap, ...]

    def summary(self) -> list[dict[str, Any]]:
        """One row per pair."""
        names = ("a", "b", "masked_a", "masked_b", "shared", "expected", "jaccard", "expected_jaccard", "p")
        return [{name: getattr(pair, name) for name in names} for pair in self.pairs]

    def to_dict(self) -> dict[str, Any]:
        """The rows, JSON-ready."""
        return jsonable({"pairs": self.summary()})


@plain_torch()
def overlap(masks: Mapping[str, SparseMask]) -> Overlap:
    """Compare every two masks: of different seeds, sizes or tasks, but of one model.

    The number of shared entries of two random masks is a sum of hypergeometric numbers, one for each tensor that
    both name, with mean Σ_t n_a(t) · n_b(t) / N(t).

    Args:
        masks: two or more, by name.

    Returns:
        An `Overlap` with the pairs in the order of the masks.

    Raises:
        ValueError: fewer than two, or two that are not of one model: no tensor in common, or one of another shape.
    """
    if len(masks) < 2:
        raise ValueError(f"overlap compares two or more masks, got {len(masks)}.")
    return Overlap(tuple(_pair(a, b, masks[a], masks[b]) for a, b in combinations(masks, 2)))


def _pair(name_a: str, name_b: str, a: SparseMask, b: SparseMask) -> PairOverlap:
    common = [name for name in a if name in b]
    different = [name for name in common if a.shapes[name] != b.shapes[name]]
    if different or not common:
        why = f"the shapes of {some(different)} differ" if different else "they have no tensor in common"
        raise ValueError(
            f"The masks {name_a} and {name_b} are of different models: {why}. Compare masks of one model."
        )
    draws = [
        Draw(
            torch.Size(a.shapes[name]).numel(),
            a[name].numel(),
            b[name].numel(),
            int(torch.isin(a[name], b[name], assume_unique=True).sum()),
        )
        for name in common
    ]
    shared, expected = sum(draw.found for draw in draws), sum(draw.expected for draw in draws)
    return PairOverlap(name_a, name_b, a.nnz, b.nnz, shared, expected, tails(draws).two_sided)
