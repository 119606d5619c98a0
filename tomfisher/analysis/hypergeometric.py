"""Exact tests of how many of a sample's members are special, alone or summed over strata."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

EXACT_SUPPORT = 20_000
_REACH = 40


class Draw(NamedTuple):
    """One draw without replacement: `found` special ones among the `drawn` of a population with `special` of them."""

    population: int
    special: int
    drawn: int
    found: int

    @property
    def expected(self) -> float:
        """Mean of `found` when every subset is equally likely: drawn · special / population."""
        return self.drawn * self.special / self.population if self.population else 0.0

    @property
    def variance(self) -> float:
        """Variance of `found` when every subset is equally likely."""
        if self.population < 2:
            return 0.0
        share = self.special / self.population
        return self.drawn * share * (1 - share) * (self.population - self.drawn) / (self.population - 1)


class Tails(NamedTuple):
    """Probabilities of fewer, exactly as many and more than were found."""

    below: float
    at: float
    above: float

    @property
    def two_sided(self) -> float:
        """Twice the smaller tail, what was found included; at most 1. Conservative: P(p <= a) <= a."""
        return min(1.0, 2 * min(self.below + self.at, self.above + self.at))


def tails(draws: Sequence[Draw]) -> Tails:
    """Tails of the sum of `found` over independent draws.

    One draw is hypergeometric. Of several, the distribution is the convolution of theirs; beyond 20,000 possible
    sums it is the normal one with the same mean and variance and a continuity correction.

    Args:
        draws: at least one.

    Returns:
        The three probabilities.
    """
    from scipy.stats import hypergeom

    total = sum(draw.found for draw in draws)
    if len(draws) == 1:
        law = draws[0][:3]
        below, at = hypergeom.cdf(total - 1, *law), hypergeom.pmf(total, *law)
        return Tails(float(below), float(at), float(hypergeom.sf(total, *law)))
    spans = [_span(draw) for draw in draws]
    if sum(high - low for low, high in spans) > EXACT_SUPPORT:
        return _normal(draws, total)
    sums, start = np.ones(1), 0
    for draw, (low, high) in zip(draws, spans, strict=True):
        law = hypergeom.pmf(np.arange(low, high + 1), draw.population, draw.special, draw.drawn)
        sums, start = np.convolve(sums, law), start + low
    position = total - start
    inside = 0 <= position < len(sums)
    return Tails(
        float(sums[: max(position, 0)].sum()),
        float(sums[position]) if inside else 0.0,
        float(sums[max(position + 1, 0) :].sum()),
    )


def _span(draw: Draw) -> tuple[int, int]:
    """The possible values, without those farther than forty standard deviations and forty from the mean."""
    reach = _REACH * (1 + math.sqrt(draw.variance))
    low = max(0, draw.drawn + draw.special - draw.population, math.floor(draw.expected - reach))
    high = min(draw.drawn, draw.special, math.ceil(draw.expected + reach))
    return low, high


def _normal(draws: Sequence[Draw], total: int) -> Tails:
    mean = sum(draw.expected for draw in draws)
    width = math.sqrt(2 * sum(draw.variance for draw in draws))
    below = 0.5 * math.erfc((mean - total + 0.5) / width)
    above = 0.5 * math.erfc((total + 0.5 - mean) / width)
    return Tails(below, max(0.0, 1 - below - above), above)
