"""What a later study takes over from the folder of a run, and how far the run got."""

from __future__ import annotations

import pytest

from tomfisher.results.row import rows_of
from tomfisher.studies.claim import claimed
from tomfisher.studies.config import Config
from tomfisher.studies.of_run import mask_of_run, settings_of_run
from tomfisher.studies.run_progress import run_progress

SCORE = {"n": 2, "accuracy": 0.5, "ci95": [0.1, 0.9], "p_vs_baseline": None}


@pytest.fixture
def run(tmp_path):
    config = Config(model="m", seed=5, kappas=(1e-3, 1e-2), random_seeds=1, output_path=str(tmp_path / "run"))
    with claimed(config) as folder:
        state = {"kappa": 1e-3, "mask": "task-control", "seed": None, "nnz": 7, "perplexity": 2.0}
        folder.save_point(rows_of({**state, "conditions": {"all": SCORE}}), {})
        for name in ("task-control-0.001", "control-only-0.001"):
            folder.mask_path(name).parent.mkdir(exist_ok=True)
            folder.mask_path(name).touch()
        folder.store_path("control").mkdir(parents=True)
    return folder.path


def test_settings_are_those_of_the_run_under_those_given(run):
    assert settings_of_run(run, ("model", "seed"), {"seed": 6, "limit": 8}) == {
        "model": "m",
        "seed": 6,
        "limit": 8,
    }


def test_a_folder_without_settings_is_not_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"is not a run folder: it has no config\.yaml"):
        settings_of_run(tmp_path, ("model",), {})


def test_the_mask_is_that_of_the_kappa_or_the_others_are_named(run):
    assert mask_of_run(run, 1e-3) == run / "masks" / "task-control-0.001.safetensors"
    with pytest.raises(
        ValueError, match=r"no task-control mask at kappa 0\.01\. It has: task-control-0\.001\."
    ):
        mask_of_run(run, 1e-2)
    (run / "masks" / "task-control-0.001.safetensors").unlink()
    with pytest.raises(ValueError, match="It has: none"):
        mask_of_run(run, 1e-3)


def test_progress_counts_what_is_there(run):
    found = run_progress(run)
    assert found.config.model == "m" and found.stores == ("control",)
    assert (found.measured, found.planned, found.masks) == (1, 7, 2)
