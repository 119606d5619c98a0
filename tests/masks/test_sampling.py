from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter

import pytest
import torch
from scipy import stats

from tomfisher.masks import SparseMask
from tomfisher.masks.sampling import sample_positions


@pytest.mark.parametrize(
    ("numel", "k"), [(0, 0), (1, 0), (1, 1), (10, 3), (10, 5), (10, 6), (10, 10), (10**12, 50)]
)
def test_sorted_distinct_in_range(numel: int, k: int) -> None:
    drawn = sample_positions(numel, k, 0, "w")
    assert drawn.dtype == torch.int64
    assert drawn.tolist() == sorted(set(drawn.tolist())) and len(drawn) == k
    assert all(0 <= position < numel for position in drawn.tolist())


@pytest.mark.parametrize("k", [2, 4])  # drawn directly, and as the complement
def test_every_subset_is_equally_likely(k: int) -> None:
    numel, draws = 6, 6000
    seen = Counter(tuple(sample_positions(numel, k, seed, "w").tolist()) for seed in range(draws))
    subsets = list(itertools.combinations(range(numel), k))
    assert set(seen) == set(subsets)
    assert stats.chisquare([seen[s] for s in subsets]).pvalue > 1e-4


def test_no_bias_for_sizes_just_above_two_thirds_of_2_to_the_32() -> None:
    # a 32-bit random number modulo 3e9 would fall below 1.3e9 twice as often as above
    numel = 3_000_000_000
    drawn = sample_positions(numel, 200_000, 1, "w")
    assert abs((drawn < numel // 2).double().mean().item() - 0.5) < 0.006


def test_memory_is_that_of_the_sample_not_of_the_tensor() -> None:
    tracemalloc.start()
    sample_positions(10**9, 1000, 0, "w")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


def test_random_like_keeps_counts_and_is_a_function_of_the_seed() -> None:
    shapes = {"a": (50, 40), "b": (2000,), "c": (7,), "d": (4,)}
    mask = SparseMask(
        {"a": torch.arange(30), "b": torch.arange(30), "d": torch.arange(4)},
        shapes,
        kappa=0.1,
        scope="tensor",
    )
    null = mask.random_like(3)
    assert null.counts() == mask.counts() == {"a": 30, "b": 30, "c": 0, "d": 4}
    assert null.shapes == mask.shapes and null.kappa == 0.1
    assert null == mask.random_like(3)
    assert null != mask.random_like(4)
    assert not torch.equal(null["a"], null["b"])  # same size and count, another draw
    assert null.parents[0]["operation"] == "random_like" and null.parents[0]["seed"] == 3


def test_random_like_does_not_depend_on_the_order_or_on_other_tensors() -> None:
    one = {"a": torch.arange(9), "b": torch.arange(5)}
    shapes = {"a": (100,), "b": (100,)}
    forward = SparseMask(one, shapes).random_like(0)
    backward = SparseMask(dict(reversed(one.items())), dict(reversed(shapes.items()))).random_like(0)
    alone = SparseMask({"a": one["a"]}, {"a": (100,)}).random_like(0)
    assert torch.equal(forward["a"], backward["a"]) and torch.equal(forward["b"], backward["b"])
    assert torch.equal(forward["a"], alone["a"])


def test_the_draw_is_the_same_everywhere() -> None:
    # a published seed must give the published mask
    assert sample_positions(1000, 5, 0, "w").tolist() == [9, 122, 590, 592, 615]
