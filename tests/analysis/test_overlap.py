"""Jaccard against sets, expectations against random draws, incomparable masks refused."""

from __future__ import annotations

import json

import pytest
import torch
from scipy.stats import kstest

from tomfisher import SparseMask
from tomfisher.analysis import overlap

SHAPES = {"a": (20, 30), "b": (10, 10)}


def mask(a, b):
    entries = {name: torch.tensor(sorted(x), dtype=torch.int64) for name, x in (("a", a), ("b", b))}
    return SparseMask(entries, SHAPES)


def sizes(n_a, n_b):
    return mask(range(n_a), range(n_b))


def as_set(m):
    return {(name, i) for name in m for i in m[name].tolist()}


def test_jaccard_is_that_of_the_sets():
    masks = {str(s): sizes(100 + 40 * s, 30).random_like(s) for s in range(4)}
    found = overlap(masks).pairs
    assert [(p.a, p.b) for p in found] == [
        ("0", "1"),
        ("0", "2"),
        ("0", "3"),
        ("1", "2"),
        ("1", "3"),
        ("2", "3"),
    ]
    for pair in found:
        a, b = as_set(masks[pair.a]), as_set(masks[pair.b])
        assert pair.shared == len(a & b) and pair.jaccard == len(a & b) / len(a | b)
        assert (pair.masked_a, pair.masked_b) == (len(a), len(b))
        expected = (
            len([i for n, i in a if n == "a"]) * len([i for n, i in b if n == "a"]) / 600 + 30 * 30 / 100
        )
        assert pair.expected == pytest.approx(expected)


def test_expected_jaccard_and_p_are_those_of_random_masks():
    a = sizes(120, 20)
    found = [overlap({"a": a, "b": sizes(90, 30).random_like(seed)}).pairs[0] for seed in range(200)]
    values = torch.tensor([pair.jaccard for pair in found], dtype=torch.float64)
    error = float(values.std()) / len(found) ** 0.5
    assert abs(float(values.mean()) - found[0].expected_jaccard) < 3 * error
    p = [pair.p for pair in found]
    assert kstest(p, "uniform", alternative="greater").pvalue > 0.01  # never too small
    assert sum(x < 0.5 for x in p) > 50


def test_equal_disjoint_and_nested_masks():
    small, large = sizes(10, 5), sizes(50, 5)
    same, nested = overlap({"x": small, "y": small}).pairs[0], overlap({"x": small, "y": large}).pairs[0]
    assert same.jaccard == 1 and nested.jaccard == 15 / 55 and nested.p < 1e-9
    other = mask(range(300, 310), range(50, 55))
    assert overlap({"x": small, "y": other}).pairs[0].jaccard == 0
    empty = overlap({"x": sizes(0, 0), "y": sizes(0, 0)})
    assert json.loads(json.dumps(empty.to_dict(), allow_nan=False))["pairs"][0]["jaccard"] is None


def test_incomparable_masks_are_refused():
    small = sizes(10, 5)
    wider = SparseMask({"a": torch.arange(3)}, {"a": (20, 31)})
    with pytest.raises(ValueError, match="masks x and y are of different models: the shapes of a differ"):
        overlap({"x": small, "y": wider})
    foreign = SparseMask({"c": torch.arange(3)}, {"c": (20, 30)})
    with pytest.raises(ValueError, match="they have no tensor in common"):
        overlap({"x": small, "y": foreign})
    with pytest.raises(ValueError, match="two or more masks, got 1"):
        overlap({"x": small})
