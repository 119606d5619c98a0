"""Masks from stores on disk are those of the diagonals in memory."""

from __future__ import annotations

import pytest

from tomfisher import FisherDiagonal, top_fraction
from tomfisher.fisher import fisher_diagonal
from tomfisher.masks import criteria
from tomfisher.studies.store_masks import store_masks
from training import trainable_model, training_samples


@pytest.fixture
def stores(tmp_path):
    model = trainable_model().eval()
    samples = training_samples()
    for name, part in (("task", samples[:5]), ("control", samples[5:])):
        fisher_diagonal(model, part, progress=False).save(tmp_path / name)
    return tmp_path / "task", tmp_path / "control"


def test_masks_of_several_kappas(stores):
    task, control = map(FisherDiagonal.load, stores)
    alone, apart = store_masks(stores[0], None, (1e-2, 1e-1)), store_masks(*stores, (1e-2, 1e-1))
    for kappa in (1e-2, 1e-1):
        assert alone[kappa] == top_fraction(task, kappa)
        assert apart[kappa] == top_fraction(task, kappa) - top_fraction(control, kappa) != alone[kappa]


def test_masks_that_leave_more_to_the_control(stores):
    task, control = map(FisherDiagonal.load, stores)
    wider = store_masks(*stores, (1e-2, 1e-1), control_kappa=0.3)
    for kappa in (1e-2, 1e-1):
        assert wider[kappa] == top_fraction(task, kappa) - top_fraction(control, 0.3)
    assert wider[1e-1].nnz < store_masks(*stores, (1e-1,))[1e-1].nnz


def test_masks_by_ratio(stores):
    task, control = map(FisherDiagonal.load, stores)
    ratios = {name: criteria.ratio(task[name], control[name], 0.9) for name in task}
    found = store_masks(*stores, (1e-2,), criterion="ratio", ratio_quantile=0.9)
    assert found[1e-2] == top_fraction(ratios, 1e-2) != top_fraction(task, 1e-2)
    with pytest.raises(ValueError, match="taylor needs weight and gradient, which Fisher stores do not hold"):
        store_masks(*stores, (1e-2,), criterion="taylor")
    with pytest.raises(ValueError, match="give --control_store, and no --control_kappa"):
        store_masks(stores[0], None, (1e-2,), criterion="ratio")


def test_stores_that_are_not_there_or_hold_others_are_refused(stores, tmp_path):
    with pytest.raises(FileNotFoundError, match="No Fisher store"):
        store_masks(stores[0], tmp_path / "none", (1e-2,))
    other = FisherDiagonal.load(stores[1])
    name = next(iter(other))
    fewer = fisher_diagonal(trainable_model().eval(), training_samples(), params=[name], progress=False)
    fewer.save(tmp_path / "fewer")
    with pytest.raises(ValueError, match="hold different tensors"):
        store_masks(stores[0], tmp_path / "fewer", (1e-2,))
