"""Statistics of independent items (how sure an accuracy is, whether two differ), and the correction for many tests.

Questions that come several to a scene are not independent: for them see `tomfisher.evaluate.scenes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

NORMAL_975 = 1.959963984540054


def wilson_interval(successes: float, n: float, z: float = NORMAL_975) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    With p = successes / n: centre = (p + z²/2n) / (1 + z²/n), half width = z / (1 + z²/n) · sqrt(p(1-p)/n + z²/4n²).

    Args:
        successes: number of successes, 0 <= successes <= n; a fraction where an item counts in part.
        n: number of items, at least 1; an effective number need not be whole.
        z: two-sided normal quantile; the default gives 95 %.

    Returns:
        `(low, high)` as proportions in [0, 1].

    Raises:
        ValueError: `n` is below 1 or `successes` lies outside 0 ... n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"wilson_interval got {successes} successes of {n}; n must be at least 1 and 0 <= successes <= n."
        )
    p, shrink = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def mcnemar(baseline: Sequence[float], other: Sequence[float]) -> float:
    """Exact two-sided McNemar test on the same items scored twice.

    Only the items whose correctness changed count: with b losses and c gains, p is the two-sided binomial
    probability of a split at least as uneven as (b, c) when both are equally likely,
    p = min(1, 2 · Σ_{k <= min(b, c)} C(b+c, k) / 2^(b+c)). Where correctness is a fraction (mean over
    repetitions, ties), an item is a loss or a gain by the sign of its change, so this is the exact sign test;
    the size of a change does not count. Without any change p = 1.

    Args:
        baseline: correctness of each item before, in [0, 1].
        other: correctness of the same items after, in the same order.

    Returns:
        The p-value in (0, 1].

    Raises:
        ValueError: the two differ in length.
    """
    if len(baseline) != len(other):
        raise ValueError(
            f"mcnemar got {len(baseline)} and {len(other)} items; it is a paired test, so score the same items twice."
        )
    losses = sum(after < before for before, after in zip(baseline, other, strict=True))
    gains = sum(after > before for before, after in zip(baseline, other, strict=True))
    changed = losses + gains
    tail = sum(math.comb(changed, k) for k in range(min(losses, gains) + 1))
    return min(1.0, 2 * tail / 2**changed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p_(i) becomes max over j <= i of min(1, (m - j) · p_(j)), j from 0.

    Args:
        p_values: m raw p-values.

    Returns:
        Corrected p-values in the order given; rejecting those below α keeps the family-wise error below α.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
