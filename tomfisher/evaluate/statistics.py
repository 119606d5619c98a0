"""Statistics of accuracies: how sure one is, whether two differ, and the correction for many tests.

Questions come in clusters, such as those about one scene, and are not independent within them: `sign_flip_test` and
`cluster_interval` take that into account. `wilson_interval` is of independent items.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction

NORMAL_975 = 1.959963984540054
TEST = "exact sign-flip test over clusters"
FINEST = 120


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


def sign_flip_test(baseline: Sequence[float], other: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Exact two-sided sign-flip test on the same questions answered twice, one sign per cluster.

    d_s = Σ (after - before) over the questions of cluster s. If nothing changed but chance, every d_s is as likely
    with the other sign, all clusters independently: p = #{σ in {-1, 1}^S : |Σ σ_s d_s| >= |Σ d_s|} / 2^S, counted in
    integers, without sampling. Where every cluster has one question that is right or wrong, it is the exact McNemar
    test. Without any change p = 1.

    Args:
        baseline: correctness of each question before, in [0, 1].
        other: correctness of the same questions after, in the same order.
        clusters: the cluster of each question. Fractions (ties, means over repetitions) are counted in units of their
            lowest common denominator, or to the nearest 1/120 where that is finer.

    Returns:
        The p-value in (0, 1] (the smallest positive float where it is smaller than that).

    Raises:
        ValueError: the three differ in length.

    Source: Fisher's randomisation test of paired differences (The Design of Experiments, 1935, section 21).
    """
    if not len(baseline) == len(other) == len(clusters):
        raise ValueError(
            f"sign_flip_test got {len(baseline)} and {len(other)} answers and {len(clusters)} clusters; it is a paired "
            "test, so ask the same questions twice and give each one's cluster."
        )
    units = _units({*baseline, *other})
    changes: Counter[Hashable] = Counter()
    for before, after, cluster in zip(baseline, other, clusters, strict=True):
        changes[cluster] += units[after] - units[before]
    steps = [change for change in changes.values() if change]
    observed = abs(sum(steps))
    if not observed:
        return 1.0
    common = math.gcd(*steps)
    sizes = [abs(step) // common for step in steps]
    below = (sum(sizes) - observed // common) // 2  # the sum over the clusters of the rarer sign, at most
    return max(2 * _patterns(sizes, below) / 2 ** len(sizes), math.ulp(0.0))


def cluster_interval(
    values: Sequence[float], clusters: Sequence[Hashable], z: float = NORMAL_975
) -> tuple[float, float]:
    """Wilson interval of a mean correctness with the number of questions that the clusters are worth.

    n_eff = n / (1 + (Σ m_s² / n - 1) · max(0, ICC)) for clusters of m_s questions; the interval is
    `wilson_interval(accuracy · n_eff, n_eff)`. ICC is the analysis-of-variance estimate of the correlation within
    clusters, with two made-up clusters of average size added, one all right and one all wrong: few clusters, and an
    accuracy near 0 or 1, cannot show that questions of one cluster are independent, and then count almost as one
    question per cluster (at 0 and 1 exactly so). With one question per cluster it is Wilson's interval.

    Args:
        values: correctness of each question, in [0, 1]; at least one.
        clusters: the cluster of each.
        z: two-sided normal quantile; the default gives 95 %.

    Returns:
        `(low, high)` as proportions in [0, 1].

    Raises:
        ValueError: the two differ in length, or there are no questions.

    Source: effective numbers in Wilson's interval: Saha, Miller and Wang, Int. J. Biostatistics 12 (2016),
    doi:10.1515/ijb-2015-0024; the estimate: Ridout, Demétrio and Firth, Biometrics 55 (1999). The made-up clusters
    are ours, after Agresti and Coull's made-up successes and failures; without them coverage falls below 90 %.
    """
    if len(values) != len(clusters) or not values:
        raise ValueError(
            f"cluster_interval got {len(values)} answers and {len(clusters)} clusters; give one or more answers and "
            "each one's cluster."
        )
    members: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        members.setdefault(cluster, []).append(value)
    n = len(values)
    excess = sum(len(group) ** 2 for group in members.values()) / n - 1
    effective = max(1.0, n / (1 + excess * _correlation(list(members.values())))) if excess else n
    return wilson_interval(min(sum(values) / n, 1.0) * effective, effective, z)


def _units(values: set[float]) -> dict[float, int]:
    """Each value in whole units of their lowest common denominator; of 1/120 where that is finer."""
    fractions = {value: Fraction(value).limit_denominator(1000) for value in values}
    scale = min(FINEST, math.lcm(*(fraction.denominator for fraction in fractions.values())))
    return {value: round(fraction * scale) for value, fraction in fractions.items()}


def _patterns(sizes: Sequence[int], limit: int) -> int:
    """How many subsets of the clusters have sizes that add up to at most `limit`.

    All but the most frequent size are added up in one long integer, a slot of S + 1 bits per sum (the generating
    polynomial at x = 2^(S+1)); the most frequent one by its binomial numbers.
    """
    (most, times), *rest = Counter(sizes).most_common()
    slot = len(sizes) + 1
    whole = (1 << slot * (limit + 1)) - 1
    packed = 1
    for size, count in rest:
        if size <= limit:
            for _ in range(count):
                packed = (packed + (packed << slot * size)) & whole
        # a larger one is in no such subset
    cumulative, binomial = [1], 1
    for k in range(1, min(times, limit // most) + 1):
        binomial = binomial * (times - k + 1) // k
        cumulative.append(cumulative[-1] + binomial)
    data, patterns = packed.to_bytes((packed.bit_length() + 7) // 8, "little"), 0
    for total in range(min(limit, packed.bit_length() // slot) + 1):
        first, last = total * slot, (total + 1) * slot
        part = int.from_bytes(data[first // 8 : (last + 7) // 8], "little") >> first % 8
        ways = part & ((1 << slot) - 1)
        if ways:
            patterns += ways * cumulative[min((limit - total) // most, len(cumulative) - 1)]
    return patterns


def _correlation(groups: list[list[float]]) -> float:
    """max(0, ICC) of groups of values, the two made-up ones added; 1 where nothing varies within a group."""
    average = sum(map(len, groups)) / len(groups)
    sizes = [*map(float, map(len, groups)), average, average]
    means = [*(sum(group) / len(group) for group in groups), 0.0, 1.0]
    within = sum((value - mean) ** 2 for group, mean in zip(groups, means, strict=False) for value in group)
    total = sum(sizes)
    centre = sum(size * mean for size, mean in zip(sizes, means, strict=True)) / total
    between = sum(size * (mean - centre) ** 2 for size, mean in zip(sizes, means, strict=True))
    between /= len(sizes) - 1
    within /= total - len(sizes)
    typical = (total - sum(size**2 for size in sizes) / total) / (len(sizes) - 1)
    return max(0.0, (between - within) / (between + (typical - 1) * within))
