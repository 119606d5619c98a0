"""How many of a random sample's members are special: exact tail probabilities, alone or summed over strata."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
NEGLIGIBLE = 1e-17  # what a Fourier transform of probabilities leaves as noise


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
    """Tails of the sum of `found` over independent draws, exact but for rounding, far out too.

    Each draw is hypergeometric, and the law P of the sum is the convolution of theirs. What is convolved is the tilted
    law P_θ(x) = P(x) · exp(θx - K), K = log Σ P(x) exp(θx), whose mean is what was found: there its values are large,
    so that they keep their relative precision. Then P(x) = P_θ(x) · exp(K - θx).

    Args:
        draws: at least one.

    Returns:
        The three probabilities; the smaller tail has a relative error below 1e-10 · max(1, |log p|) and is 0 where it
        is below 1e-308.

    Source: exponential tilting as in saddlepoint approximations (Daniels, 1954), without their approximation.
    """
    from scipy.optimize import brentq
    from scipy.signal import convolve

    total, laws = sum(draw.found for draw in draws), [_Law(draw) for draw in draws]
    if total in (sum(law.low for law in laws), sum(law.high for law in laws)):  # every draw at its end
        above = total > sum(law.low for law in laws)
        at = math.exp(sum(float(law.logs[-1 if above else 0]) for law in laws))
        return Tails(1 - at, at, 0.0) if above else Tails(0.0, at, 1 - at)

    def missing(theta: float) -> float:
        return total - sum(law.tilted(theta).mean for law in laws)

    bound = 1.0 if missing(0.0) >= 0 else -1.0
    while missing(bound) * bound > 0:
        bound *= 2
    theta = float(brentq(missing, 0.0, bound, xtol=1e-8, rtol=1e-8))
    tilted = [law.tilted(theta) for law in laws]
    low, chances = 0, np.ones(1)
    for law in tilted:
        first, chances = _trimmed(convolve(chances, law.chances))
        low += law.low + first
    values = np.arange(len(chances)) + low - total
    constant = sum(law.constant for law in tilted) - theta * total
    with np.errstate(under="ignore"):
        chances = chances * np.exp(np.minimum(constant - theta * values, 700.0))
    at = float(chances[values == 0][0])
    smaller = float(chances[values > 0 if theta >= 0 else values < 0].sum())
    rest = max(0.0, 1 - at - smaller)
    return Tails(rest, at, smaller) if theta >= 0 else Tails(smaller, at, rest)


class _Tilted(NamedTuple):
    """A tilted law: probabilities of `low`, `low` + 1, ..., the mean, and log Σ P(x) exp(θx)."""

    low: int
    chances: Floats
    mean: float
    constant: float


class _Law:
    """Logarithms of the probabilities of all possible values of a draw, `low` to `high`."""

    def __init__(self, draw: Draw) -> None:
        population, special, drawn, _ = draw
        self.low, self.high = max(0, drawn + special - population), min(drawn, special)
        # log P(x + 1) / P(x); scipy.stats.hypergeom.logpmf is off by 1e-11 to 4e-8 in large populations
        x = np.arange(self.low, self.high, dtype=np.float64)
        ratios = np.log((special - x) * (drawn - x))
        ratios -= np.log((x + 1) * (population - special - drawn + x + 1))
        # summed up from the most likely value, where it matters most
        mode = int(np.searchsorted(-ratios, 0.0))
        logs = np.concatenate([-np.cumsum(ratios[:mode][::-1])[::-1], [0.0], np.cumsum(ratios[mode:])])
        self.logs: Floats = logs - _log_sum(logs)

    def tilted(self, theta: float) -> _Tilted:
        """The law P(x) exp(θx), normalised, without the values that are negligible."""
        x = np.arange(self.low, self.high + 1, dtype=np.float64)
        logs = self.logs + theta * x
        constant = _log_sum(logs)
        with np.errstate(under="ignore"):
            chances = np.exp(logs - constant)
        first, kept = _trimmed(chances)
        return _Tilted(self.low + first, kept, float(chances @ x), constant)


def _trimmed(chances: Floats) -> tuple[int, Floats]:
    """The values between the first and the last that is not negligible, and how many came before them."""
    kept = np.flatnonzero(chances > NEGLIGIBLE)
    return int(kept[0]), np.maximum(chances[kept[0] : kept[-1] + 1], 0.0)


def _log_sum(logs: Floats) -> float:
    """Log Σ exp(logs)."""
    largest = float(logs.max())
    with np.errstate(under="ignore"):
        return largest + math.log(float(np.exp(logs - largest).sum()))
