"""The folder of a training: in use by one call at a time, and replaced only when told to."""

from __future__ import annotations

import pytest
import torch

from tomfisher import SparseMask
from tomfisher.locks import locked
from tomfisher.studies import Config, finetune_run
from tomfisher.studies.finetune import Plan


class Work(Exception):
    pass


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Calls `finetune_run` with `tmp_path / "out"`; what comes after the folder is taken raises `Work`."""

    def work(*args):
        raise Work

    monkeypatch.setattr(finetune_run, "load_model", work)
    SparseMask({"w": torch.arange(2)}, {"w": (4, 4)}).save(tmp_path / "m.safetensors")
    plan = Plan(1, (1e-3,))

    def call(**options):
        return finetune_run.finetune_run(
            Config(model="testbed-llama"), plan, tmp_path / "m.safetensors", tmp_path / "out", **options
        )

    return call


def test_earlier_results_are_refused_unless_they_are_to_be_replaced(train, tmp_path):
    with pytest.raises(Work):
        train()
    (tmp_path / "out" / "finetune.json").write_text("{}")
    with pytest.raises(ValueError, match=r"finetune\.json exists\. Give another --output_path"):
        train()
    with pytest.raises(Work):
        train(overwrite=True)
    assert (tmp_path / "out" / "finetune.json").read_text() == "{}"


@pytest.mark.parametrize(("steps", "batch_size"), [(0, 8), (1, 0)])
def test_a_plan_without_a_step_or_a_sample_is_refused(steps, batch_size):
    with pytest.raises(ValueError, match=rf"at least 1, got {steps} and {batch_size}\."):
        Plan(steps, batch_size=batch_size)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_use_is_refused(train, tmp_path, overwrite):
    folder = tmp_path / "out"
    folder.mkdir()
    with locked(folder), pytest.raises(ValueError, match="Another tomfisher process is working in"):
        train(overwrite=overwrite)
    with pytest.raises(Work):
        train(overwrite=overwrite)
