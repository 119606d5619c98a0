"""Every criterion against plain PyTorch, written out entry by entry."""

from __future__ import annotations

import pytest
import torch

from tomfisher.masks import criteria, rank, top_fraction
from tomfisher.masks.criteria import Known, Scored

SHAPE = (6, 10)


@pytest.fixture
def known():
    generator = torch.Generator().manual_seed(5)
    gradients = torch.randn(7, *SHAPE, generator=generator)
    others = torch.randn(7, *SHAPE, generator=generator)
    others[:, :2] = 0.0  # no sample of the other texts reaches two rows
    return gradients, Known(
        fisher=gradients.square().sum(0),
        other=others.square().sum(0),
        weight=torch.randn(SHAPE, generator=generator),
        gradient=gradients.sum(0),
        input_norm=torch.rand(1, SHAPE[1], generator=generator),
        change=torch.randn(SHAPE, generator=generator).double(),
    )


def test_definitions(known):
    gradients, k = known
    w, g = k.weight.double(), gradients.double()
    positive = sorted(v for v in k.other.flatten().tolist() if v > 0)
    quantile = positive[(len(positive) - 1) // 2]
    expected = {
        "fisher": g.square().sum(0),
        "ratio": g.square().sum(0) / (k.other.double() + quantile),
        "magnitude": w.abs(),
        "taylor": (w * g.sum(0)).abs(),
        "batch-gradient": g.sum(0).square(),
        "fill": g.square().sum(0) * k.change.square(),
        "obd": g.square().sum(0) * w.square(),
        "wanda": w.abs() * k.input_norm.double(),
    }
    assert set(expected) == set(criteria.NAMES)
    for name, values in expected.items():
        found = criteria.get(name)(k)
        torch.testing.assert_close(found.double(), values, rtol=1e-5, atol=1e-6)
        assert found.shape == SHAPE and bool((found >= 0).all())
    orders = {name: criteria.get(name)(k).flatten().argmax().item() for name in criteria.NAMES}
    assert len(set(orders.values())) > 3  # they are different criteria


def test_fisher_is_no_square_of_the_batch_gradient(known):
    """Two samples that pull a weight in opposite directions: the Fisher diagonal sees both, the batch neither."""
    pulls = torch.tensor([[3.0], [-3.0]])
    k = Known(fisher=pulls.square().sum(0), gradient=pulls.sum(0))
    assert criteria.get("fisher")(k).item() == 18.0 and criteria.get("batch-gradient")(k).item() == 0.0


def test_quantile_of_ratio_is_of_the_entries_above_zero():
    other = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 4.0])
    for quantile, q in ((0.0, 1.0), (0.5, 2.0), (1.0, 4.0)):
        found = criteria.get("ratio")(Known(fisher=torch.ones(6), other=other, quantile=quantile))
        assert found.tolist() == [1 / (v + q) for v in other.tolist()]


def test_ratio_is_finite_where_the_control_reaches_nothing():
    found = criteria.get("ratio")(Known(fisher=torch.tensor([0.0, 1.0, 3.0e38]), other=torch.zeros(3)))
    assert bool(found.isfinite().all()) and found[0] == 0 < found[1] < found[2]


def test_ratio_does_not_depend_on_the_number_of_control_samples(known):
    _, k = known
    twice = Known(fisher=k.fisher, other=2 * k.other)
    one, two = (top_fraction({"w": criteria.get("ratio")(each)}, 0.2) for each in (k, twice))
    assert one == two


def test_what_is_missing_and_what_is_unknown_are_named():
    with pytest.raises(ValueError, match="wanda needs input_norm"):
        criteria.get("wanda")(Known(weight=torch.ones(2)))
    with pytest.raises(ValueError, match=r"must be one of fisher, ratio.*Did you mean 'wanda'"):
        criteria.get("wannda")
    assert criteria.get(None).name == "fisher"


def test_scores_are_computed_one_tensor_at_a_time_and_ranked_like_any_mapping(known):
    _, k = known
    asked = []

    def of(name):
        asked.append(name)
        return k

    scores = Scored(criteria.get("taylor"), ["a", "b"], of)
    assert len(scores) == 2 and list(scores) == ["a", "b"] and not asked
    mask = rank(scores, 0.2).mask(0.1)
    assert mask == top_fraction({name: (k.weight * k.gradient).abs() for name in "ab"}, 0.1)
    assert asked == ["a", "b"] and mask.parents[0]["definition"]["criterion"] == "taylor"
    with pytest.raises(KeyError):
        scores["c"]
