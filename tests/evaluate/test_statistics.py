import itertools
import random

import pytest
import scipy.stats

from tomfisher.evaluate.statistics import sign_flip_test, wilson_interval


@pytest.mark.parametrize("n", [1, 2, 7, 40, 321])
def test_wilson_is_scipys(n):
    for k in range(n + 1):
        expected = scipy.stats.binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
        assert wilson_interval(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_takes_fractions_between_their_neighbours():
    low, high = wilson_interval(3.5, 10)
    assert wilson_interval(3, 10)[0] < low < wilson_interval(4, 10)[0]
    assert wilson_interval(3, 10)[1] < high < wilson_interval(4, 10)[1]


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 4), (5, 4), (float("nan"), 4)])
def test_wilson_refuses(k, n):
    with pytest.raises(ValueError, match="at least 1"):
        wilson_interval(k, n)


@pytest.mark.parametrize(("losses", "gains"), list(itertools.product([0, 1, 2, 5, 17, 200], repeat=2)))
def test_one_question_per_cluster_is_scipys_binomial_test(losses, gains):
    pairs = [(1, 0)] * losses + [(0, 1)] * gains + [(1, 1)] * 9 + [(0, 0)] * 4
    random.Random(0).shuffle(pairs)
    got = sign_flip_test([a for a, _ in pairs], [b for _, b in pairs], range(len(pairs)))
    expected = scipy.stats.binomtest(losses, losses + gains).pvalue if losses + gains else 1.0
    assert got == pytest.approx(expected, rel=1e-12)
