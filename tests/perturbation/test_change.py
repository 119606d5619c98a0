"""What a fill is expected to add is what it adds, where one entry of many is masked."""

from __future__ import annotations

import pytest
import torch

from tomfisher import SparseMask, perturb
from tomfisher.perturbation.change import expected_change


@pytest.mark.parametrize("fill", ["mean", "zero", 0.25, "scale:1.5"])
def test_change_is_that_of_the_fill(fill):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    before, change = weight.clone(), expected_change(weight, fill)
    mask = SparseMask({"w": torch.tensor([0, 77])}, {"w": weight.shape})
    with perturb({"w": weight}, mask, fill=fill):
        added = (weight.double() - before.double()).flatten()[[0, 77]]
    # the mean is of all entries here and of the unmasked ones there
    slack = 2 * before.abs().max().item() / 4000 if fill == "mean" else 1e-6
    assert (added - change.flatten()[[0, 77]]).abs().max() <= slack
    assert change.shape == weight.shape and change.dtype == torch.float64


def test_noise_is_expected_at_the_root_of_its_mean_square():
    weight = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
    mask = SparseMask({"w": torch.tensor([3])}, {"w": weight.shape})
    squares = []
    for seed in range(400):
        target = weight.clone()
        with perturb({"w": target}, mask, fill="noise", seed=seed):
            squares.append((target[3] - weight[3]).item() ** 2)
    expected = expected_change(weight, "noise")[3].item() ** 2
    deviation = torch.tensor(squares).std().item() / 20
    assert abs(sum(squares) / 400 - expected) < 4 * deviation
