"""Exact tests of how many of a sample's members are special, alone or summed over strata."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_STEPS = 60


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
    """Tails of the sum of `found` over independent draws, exact but for rounding, far out too.

    One draw is hypergeometric. Of several, the law is the convolution of theirs. With P(x) the law of the sum, what is
    convolved is the tilted law P_θ(x) = P(x) · exp(θx - K), K = log Σ P(x) exp(θx), whose mean is what was found: there
    its values are large, so that a Fourier transform keeps their relative precision. Then P(x) = P_θ(x) · exp(K - θx).

    Args:
        draws: at least one.

    Returns:
        The three probabilities; the smaller tail has a relative error below 1e-10 · max(1, |log p|) and is 0 where it
        is below 1e-308.

    Source: exponential tilting as in saddlepoint approximations (Daniels, 1954), without their approximation.
    """
    total = sum(draw.found for draw in draws)
    laws = [_Law(draw) for draw in draws]
    if len(laws) == 1:
        place = total - laws[0].low
        with np.errstate(under="ignore"):
            chances = np.exp(laws[0].logs)
        parts = chances[:place], chances[place : place + 1], chances[place + 1 :]
        return Tails(*(float(part.sum()) for part in parts))
    start, end = sum(law.low for law in laws), sum(law.high for law in laws)
    if total in (start, end):  # every draw at its end
        at = math.exp(sum(float(law.logs[0 if total == start else -1]) for law in laws))
        return _with_smaller(at, 0.0, total == end)
    theta = _tilt(laws, total)
    tilted = [law.tilted(theta) for law in laws]
    constant = sum(law.constant for law in tilted)
    chances, first = _convolved(tilted, total, end - start)
    values = np.arange(first, first + len(chances))
    with np.errstate(under="ignore"):
        found = chances * np.exp(np.minimum(constant - theta * values, 700.0))
    at = float(found[total - first])
    smaller = found[total - first + 1 :] if theta >= 0 else found[: total - first]
    return _with_smaller(at, float(smaller.sum()), theta >= 0)


def _with_smaller(at: float, tail: float, is_above: bool) -> Tails:
    """The tails, of which the smaller one is known well and the other is what is left."""
    rest = max(0.0, 1 - at - tail)
    return Tails(rest, at, tail) if is_above else Tails(tail, at, rest)


class _Tilted(NamedTuple):
    """A tilted law: probabilities of `low`, `low` + 1, ..., its mean and variance, and log Σ P(x) exp(θx)."""

    low: int
    chances: Floats
    mean: float
    variance: float
    constant: float


class _Law:
    """Logarithms of the probabilities of all possible values of a draw, `low` to `high`."""

    def __init__(self, draw: Draw) -> None:
        population, special, drawn, _ = draw
        self.low = max(0, drawn + special - population)
        self.high = min(drawn, special)
        x = np.arange(self.low, self.high, dtype=np.float64)
        # P(x + 1) / P(x), summed up from the most likely value, where it matters most
        ratios = np.log((special - x) * (drawn - x)) - np.log(
            (x + 1) * (population - special - drawn + x + 1)
        )
        mode = (drawn + 1) * (special + 1) // (population + 2)
        mode = min(max(mode, self.low), self.high) - self.low
        below = -np.cumsum(ratios[:mode][::-1])[::-1]
        logs = np.concatenate([below, np.zeros(1), np.cumsum(ratios[mode:])])
        with np.errstate(under="ignore"):
            self.logs: Floats = logs - math.log(float(np.exp(logs).sum()))

    def tilted(self, theta: float) -> _Tilted:
        """The law P(x) exp(θx), normalised."""
        x = np.arange(self.low, self.high + 1, dtype=np.float64)
        logs = self.logs + theta * x
        largest = float(logs.max())
        with np.errstate(under="ignore"):
            chances = np.exp(logs - largest)
        whole = float(chances.sum())
        chances /= whole
        mean = float(chances @ x)
        variance = float(chances @ (x - mean) ** 2)
        return _Tilted(self.low, chances, mean, variance, largest + math.log(whole))


def _tilt(laws: Sequence[_Law], total: int) -> float:
    """The θ for which the mean of the sum is `total`, or near it: Newton's method between bounds that close in."""
    theta, low, high = 0.0, -math.inf, math.inf
    for _ in range(_STEPS):
        tilted = [law.tilted(theta) for law in laws]
        missing = total - sum(law.mean for law in tilted)
        variance = sum(law.variance for law in tilted)
        if abs(missing) <= 1e-3 * (1 + math.sqrt(variance)):
            break
        low, high = (theta, high) if missing > 0 else (low, theta)
        step = missing / variance if variance > 0 else math.copysign(1.0, missing)
        theta += max(-4.0, min(4.0, step))
        if not low < theta < high:
            theta = (low + high) / 2
    return theta


def _convolved(laws: Sequence[_Tilted], total: int, span: int) -> tuple[Floats, int]:
    """Probabilities of the sum of tilted laws, in a window about `total` outside which is nothing, and its start."""
    width = math.sqrt(sum(law.variance for law in laws))
    # by Bernstein's inequality less than 1e-29 lies farther than this from the mean
    size = 1 << (2 * math.ceil(12 * width + 60)).bit_length()
    size = min(size, 1 << (span + 1).bit_length())
    spectrum: Any = 1.0
    centre = 0
    for law in laws:
        middle = round(law.mean)
        centre += middle
        place = (np.arange(len(law.chances)) + law.low - middle) % size
        spectrum = spectrum * np.fft.rfft(np.bincount(place, law.chances, size))
    around = np.fft.irfft(spectrum, size)
    # entry k is the sum of all values that are centre + k modulo size; those within half of it count
    first = max(total - size // 2, sum(law.low for law in laws))
    last = min(total + size // 2 - 1, sum(law.low + len(law.chances) - 1 for law in laws))
    values = np.arange(first, last + 1)
    return np.maximum(around[(values - centre) % size], 0.0), first
