"""Distinct rows and columns, and how concentrated they are, beside enumeration."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from tomfisher import SparseMask
from tomfisher.analysis.spread import Axis, expected_distinct, matrices, spread


@pytest.mark.parametrize(("size", "across"), [(3, 4), (5, 2), (1, 6), (6, 1)])
def test_expected_distinct_rows_are_the_mean_over_all_masks(size, across):
    for masked in range(size * across + 1):
        counts = [len({i // across for i in c}) for c in combinations(range(size * across), masked)]
        assert expected_distinct(size, across, masked) == pytest.approx(sum(counts) / len(counts))


def test_expected_distinct_of_a_large_matrix():
    # one entry hits one row; two hit two unless they share it
    assert expected_distinct(4096, 4096, 1) == pytest.approx(1, rel=1e-12)
    assert expected_distinct(4096, 4096, 2) == pytest.approx(2 - 4095 / (4096 * 4096 - 1), rel=1e-12)


def test_an_axis_by_hand():
    axis = Axis.of(torch.tensor([0, 6, 0, 1, 1] + [0] * 195), across=50)
    assert (axis.size, axis.distinct, axis.top) == (200, 3, ((1, 6), (3, 1), (4, 1)))
    assert axis.busiest_share == 7 / 8
    entropy = -(6 / 8 * math.log(6 / 8) + 2 * 1 / 8 * math.log(1 / 8))
    assert axis.effective == pytest.approx(math.exp(entropy))
    assert math.isnan(Axis.of(torch.zeros(4, dtype=torch.int64), 4).busiest_share)


def test_rows_are_outputs_wherever_the_weight_keeps_them():
    mask = SparseMask({"w": torch.tensor([0, 1, 2])}, {"w": (4, 6)})
    (plain,), (turned,) = spread(mask), spread(mask, frozenset({"w"}))
    assert (plain.rows.distinct, plain.columns.distinct, plain.rows.size) == (1, 3, 4)
    assert (turned.rows.distinct, turned.columns.distinct, turned.rows.size) == (3, 1, 6)


def test_experts_are_matrices_of_their_own_and_vectors_are_none():
    shapes = {"experts": (3, 2, 4), "conv": (5, 1, 3), "bias": (7,)}
    mask = SparseMask(
        {"experts": torch.tensor([0, 9, 15, 23]), "conv": torch.tensor([4]), "bias": torch.tensor([1])},
        shapes,
    )
    found = {name: (r.tolist(), c.tolist(), shape) for name, r, c, shape in matrices(mask)}
    assert found == {
        "experts[0]": ([0], [0], (2, 4)),
        "experts[1]": ([0, 1], [1, 3], (2, 4)),
        "experts[2]": ([1], [3], (2, 4)),
        "conv": ([1], [1], (5, 3)),
    }
