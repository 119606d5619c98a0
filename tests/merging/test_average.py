from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from tomfisher.merging import fisher_average

VALUES = [torch.tensor([1.0, 2.0, -4.0, 8.0]), torch.tensor([3.0, 5.0, 6.0, 0.5])]
FISHERS = [torch.tensor([1.0, 0.0, 0.25, 0.0]), torch.tensor([3.0, 2.0, 0.5, 0.0])]


def exact(coefficients: list[int], floor: Fraction) -> list[float]:
    """The definition in rational numbers."""
    merged = []
    for i in range(4):
        weights = [c * (Fraction(F[i].item()) + floor) for c, F in zip(coefficients, FISHERS, strict=True)]
        weights = weights if sum(weights) else [Fraction(c) for c in coefficients]
        values = [Fraction(v[i].item()) for v in VALUES]
        merged.append(float(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)))
    return merged


def test_the_definition() -> None:
    for coefficients in ([1, 1], [2, 5]):
        for floor in (Fraction(0), Fraction(1, 8)):
            got = fisher_average(VALUES, FISHERS, coefficients, float(floor))
            assert got.dtype == torch.float64
            assert torch.allclose(
                got, torch.tensor(exact(coefficients, floor), dtype=torch.float64), rtol=1e-15
            )
    # one model's weight where the other has no Fisher; the plain mean where none has
    assert (
        fisher_average(VALUES, FISHERS, [1, 1])[1] == 5 and fisher_average(VALUES, FISHERS, [1, 1])[3] == 4.25
    )


def test_without_fisher_it_is_the_weighted_mean() -> None:
    assert torch.equal(
        fisher_average(VALUES, None, [3, 1]), (3 * VALUES[0].double() + VALUES[1].double()) / 4
    )


def test_tiny_and_huge_fishers() -> None:
    values = [torch.tensor([1.0]), torch.tensor([2.0])]
    for size in (1e-38, 1e38):
        fishers = [torch.tensor([size]), torch.tensor([3 * size])]
        assert fisher_average(values, fishers, [1, 1]).item() == pytest.approx(1.75, rel=1e-6)
