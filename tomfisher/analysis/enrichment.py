"""Do a mask's entries in W_Q and W_K gather in the rows of some rotary frequencies? Tested against chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tomfisher.analysis.counts import PartCount
from tomfisher.analysis.permutation import permuted_counts, two_sided
from tomfisher.analysis.rope import BANDS, RopeSpectrum, bands
from tomfisher.evaluate.statistics import holm
from tomfisher.models.families import UnsupportedModel
from tomfisher.runtime.torch_state import plain_torch

Level = Literal["head", "layer", "model"]
DOMINANT = "dominant"
ROWS = (DOMINANT, *BANDS)
CORRECTIONS: dict[Level, str] = {"model": "holm", "layer": "benjamini-hochberg", "head": "benjamini-hochberg"}


@dataclass(frozen=True)
class RowTest:
    """The masked entries of W_Q or W_K that lie in certain rows, compared with chance.

    Attributes:
        level: one "head" of one layer, all heads of a "layer", or all layers of the "model".
        layer: its number; None at the level of the model.
        part: "q" or "k".
        head: its number (of k: the key and value head); None at the other levels.
        rows: "dominant" (the pairs of largest mean norm of each head), or the band "slow", "middle" or "fast".
        pairs: the rotary pairs of those rows, for one head; None at the other levels.
        population: entries of the weight (of the head's rows).
        special: those of them in such rows.
        masked: masked entries.
        found: those of them in such rows.
        expected: mean of `found` if every mask of as many entries were equally likely.
        p: of a head, two-sided: hypergeometric, as if every mask of as many entries were equally likely.
        p_corrected: after Benjamini and Hochberg over all heads and rows.
        p_pairs: of a layer or the model, two-sided, if each head's pairs were permuted among the frequencies, the
            entries of a pair staying together (`tomfisher.analysis.permutation`); at least 0.0002.
        p_pairs_corrected: over all tests of the same level: after Holm at the level of the model, after Benjamini and
            Hochberg at that of the layers.
    """

    level: Level
    layer: int | None
    part: str
    head: int | None
    rows: str
    pairs: tuple[int, ...] | None
    population: int
    special: int
    masked: int
    found: int
    expected: float
    p: float | None = None
    p_corrected: float | None = None
    p_pairs: float | None = None
    p_pairs_corrected: float | None = None

    @property
    def fold(self) -> float:
        """`found` over `expected`; NaN where nothing is expected."""
        return self.found / self.expected if self.expected else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Every attribute but the p of the other levels, and the fold."""
        others = ("p_pairs", "p_pairs_corrected") if self.level == "head" else ("p", "p_corrected")
        return {name: value for name, value in vars(self).items() if name not in others} | {"fold": self.fold}


@dataclass(frozen=True)
class Enrichment:
    """All tests of one mask; made by `enrichment`.

    A sensitive row usually has many masked entries, so they are no uniform draw wherever that row lies. `p_pairs`
    therefore asks whether it is these frequencies that have such rows: pairs of a head are permuted, each with its
    entries. A head has too few pairs for that; its `p`, of a uniform draw without replacement from its rows, is small
    for the scatter alone and only ranks heads (`strongest`).

    The two parts and four kinds of rows of the model's level are one family, and Holm's correction bounds the chance
    of any false finding among them, however they depend on each other. All tests of the layers are one family, those
    of the heads another; the correction of Benjamini and Hochberg bounds the expected share of false findings among
    the findings there. It assumes independence or positive dependence, and the three bands of one weight are negatively
    dependent (what is in one is not in the others), so read single layers and heads as hints.

    Attributes:
        tests: by level, rows, layer, part and head.
        dominant_pairs: how many pairs of each head count as dominant.
        context: tokens that the bands are relative to.
    """

    tests: tuple[RowTest, ...]
    dominant_pairs: int
    context: int

    def at(self, level: Level, rows: str | None = None) -> list[RowTest]:
        """The tests of one level, of all rows or of one kind."""
        return [test for test in self.tests if test.level == level and rows in (None, test.rows)]

    def strongest(self, n: int = 10) -> list[RowTest]:
        """The n heads with the smallest p for their dominant rows."""
        return sorted(self.at("head", DOMINANT), key=lambda test: test.p or 0.0)[:n]

    def summary(self) -> list[dict[str, Any]]:
        """One row for each part and kind of rows: all layers together, and in how many layers pairs stand out."""
        columns = ("part", "rows", "masked", "found", "expected", "fold", "p_pairs", "p_pairs_corrected")
        rows = []
        for test in self.at("model"):
            layers = [t for t in self.at("layer", test.rows) if t.part == test.part]
            out = sum(t.p_pairs_corrected is not None and t.p_pairs_corrected < 0.05 for t in layers)
            rows.append({name: getattr(test, name) for name in columns} | {"layers_below_5%": out})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Tests of model and layers, and of the heads' dominant rows, JSON-ready but for NaN."""
        return {
            "correction": CORRECTIONS,
            "dominant_pairs": self.dominant_pairs,
            "context": self.context,
            "model": [test.to_dict() for test in self.at("model")],
            "layers": [test.to_dict() for test in self.at("layer")],
            "heads": [test.to_dict() for test in self.at("head", DOMINANT)],
        }


@plain_torch()
def enrichment(parts: Sequence[PartCount], spectrum: RopeSpectrum, dominant_pairs: int = 1) -> Enrichment:
    """Test whether masked entries of W_Q and W_K gather in the rows of dominant pairs, and in those of each band.

    For N entries, K of them in such rows, n masked and x masked in such rows::

        expected = n · K / N        p = min(1, 2 · min(P(X <= x), P(X >= x))), X hypergeometric

    Args:
        parts: counts of a mask (`tomfisher.analysis.counts.count_parts`).
        spectrum: of the untouched model: which pairs have the largest mean norm, and the bands.
        dominant_pairs: how many pairs of each head count as dominant.

    Returns:
        An `Enrichment`.

    Raises:
        UnsupportedModel: the mask names no query or key weight that rotates.
        ValueError: the spectrum is of another model, or `dominant_pairs` is not from 1 to the number of pairs.
    """
    rotated = [part for part in parts if part.rotary is not None]
    if not rotated:
        raise UnsupportedModel(
            "The mask names no weight of queries or keys that are rotated, so no row has a frequency."
        )
    heads: list[RowTest] = []
    layers: list[RowTest] = []
    nulls: dict[tuple[str, str], list[Tensor]] = {}
    for part in rotated:
        assert part.pairs is not None and part.layer is not None
        chosen = _chosen(part, spectrum, dominant_pairs)
        permuted = permuted_counts(part.pairs, chosen, seed=2 * part.layer + (part.kind == "k"))
        for rows, pairs in chosen.items():
            of_heads = list(_of_heads(part, rows, pairs))
            heads += of_heads
            layers.append(_sum(of_heads, "layer", permuted[rows]))
            nulls.setdefault((part.kind, rows), []).append(permuted[rows])
    model = [
        _sum(
            [test for test in layers if (test.part, test.rows) == (kind, rows)],
            "model",
            torch.stack(nulls[kind, rows]).sum(0),
        )
        for rows in ROWS
        for kind in ("q", "k")
        if (kind, rows) in nulls
    ]
    tests = [
        *model,
        *(test for level in (layers, heads) for rows in ROWS for test in level if test.rows == rows),
    ]
    return Enrichment(tuple(_corrected(tests)), dominant_pairs, spectrum.context)


def dominant(norms: Tensor, n: int) -> Tensor:
    """The n pairs of largest mean norm of each head, int64 `[heads, n]`, rising; ties go to the lower pair.

    Args:
        norms: `[heads, P]`.
        n: 1 to P.

    Raises:
        ValueError: n is outside.
    """
    if not 1 <= n <= norms.shape[1]:
        raise ValueError(f"dominant_pairs must be from 1 to {norms.shape[1]}, got {n}.")
    return norms.argsort(dim=-1, descending=True, stable=True)[:, :n].sort(-1).values


def _chosen(part: PartCount, spectrum: RopeSpectrum, n: int) -> dict[str, Tensor]:
    """For each kind of rows a bool `[heads, P]`: the pairs that they belong to."""
    layer = next((layer for layer in spectrum.layers if layer.layer == part.layer), None)
    assert part.rotary is not None and part.units is not None
    shape = (len(part.units), len(part.rotary.frequencies))
    norms = None if layer is None else layer.norm("q" if part.kind == "q" else "k")
    if norms is None or tuple(norms.shape) != shape:
        seen = "nothing" if norms is None else f"{tuple(norms.shape)} heads and pairs"
        raise ValueError(
            f"The spectrum has {seen} for {part.kind} of layer {part.layer}, the model has {shape}. "
            "Take the rope_spectrum of this very model."
        )
    band = bands(part.rotary.frequencies, spectrum.context)
    of_bands = {name: (band == i).expand(shape) for i, name in enumerate(BANDS)}
    best = torch.zeros(shape, dtype=torch.bool).scatter_(1, dominant(norms, n), True)
    return {DOMINANT: best, **of_bands}


def _of_heads(part: PartCount, rows: str, pairs: Tensor) -> Iterator[RowTest]:
    """The test of each head of one weight."""
    from scipy.stats import hypergeom

    assert part.units is not None and part.pairs is not None
    population, masked = part.units.shape[1] * part.unit_weights, part.units.sum(1).numpy()
    special = (2 * part.unit_weights * pairs.sum(1)).numpy()
    observed = (part.pairs * pairs).sum(1).numpy()
    law = hypergeom(population, special, masked)
    p = (2 * np.minimum(law.cdf(observed), law.sf(observed - 1))).clip(max=1.0)
    for head, (k, n, x) in enumerate(zip(special.tolist(), masked.tolist(), observed.tolist(), strict=True)):
        named = tuple(pairs[head].nonzero().flatten().tolist())
        where = (part.layer, part.kind, head, rows, named)
        yield RowTest("head", *where, population, k, n, x, n * k / population, p=float(p[head]))


def _sum(tests: Sequence[RowTest], level: Level, null: Tensor) -> RowTest:
    """The test of a weight from those of its heads, or of the model from those of its weights."""
    first = tests[0]
    population, special, masked, observed = (
        sum(getattr(test, name) for test in tests) for name in ("population", "special", "masked", "found")
    )
    is_layer = level == "layer"
    expected = masked * special / population if is_layer else sum(test.expected for test in tests)
    where = (first.layer if is_layer else None, first.part, None, first.rows, None)
    counts = (population, special, masked, observed, expected)
    return RowTest(level, *where, *counts, p_pairs=two_sided(observed, null))


def _corrected(tests: Sequence[RowTest]) -> list[RowTest]:
    """The tests with their p corrected over all tests of their level."""
    corrected = []
    for level, correction in CORRECTIONS.items():
        members = [test for test in tests if test.level == level]
        name = "p" if level == "head" else "p_pairs"
        correct = holm if correction == "holm" else _benjamini_hochberg
        for test, p in zip(members, correct([getattr(test, name) for test in members]), strict=True):
            changes: dict[str, Any] = {f"{name}_corrected": p}
            corrected.append(replace(test, **changes))
    return corrected


def _benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    from scipy.stats import false_discovery_control

    return false_discovery_control(p_values).tolist() if p_values else []
