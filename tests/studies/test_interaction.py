"""`interaction.json` of a study: every mask, made once, and shown by the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tomfisher import SparseMask, report
from tomfisher.analysis import interaction
from tomfisher.models import load_model
from tomfisher.results.interaction import study_table
from tomfisher.studies import Config, Experiment
from tomfisher.studies.inputs import Inputs

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(tiny_settings):
    return {
        **tiny_settings,
        "kappas": [0.05],
        "control_kappa": [0.2],
        "random_seeds": 1,
        "limit": 12,
        "n_task": 6,
        "n_control": 6,
        "perplexity_tokens": 200,
        "analysis_prompts": 0,
    }


def test_every_mask_of_a_study_is_there_and_made_once(settings, monkeypatch):
    Experiment(Config.from_dict(settings)).run(progress=False)
    folder = Path(settings["output_path"])
    assert not (folder / "interaction.json").exists()
    config = Config.from_dict(
        {**settings, "interaction": True}
    )  # added later, without measuring anything again
    monkeypatch.setattr(Experiment, "_measure", lambda *a: pytest.fail("measured again"))
    Experiment(config).run(progress=False)
    written = (folder / "interaction.json").read_bytes()
    content = json.loads(written)
    named = [(entry["rule"], entry["mask"]) for entry in content["masks"]]
    kinds = ("task-control", "control-only", "random")
    assert named == [(rule, kind) for rule in ("fisher", "fisher, control 0.2") for kind in kinds]
    loaded = load_model(settings["model"], dtype="fp32", device="cpu")
    samples = Inputs(config).samples("task", loaded)
    mask = SparseMask.load(folder / "masks" / "task-control-0.05-without-0.2.safetensors")
    expected = interaction(loaded.model, samples, mask, progress=False).to_dict()
    entry = content["masks"][3]
    assert entry["nnz"] == mask.nnz and entry["ratio"] == pytest.approx(expected["ratio"], rel=1e-4)
    assert entry["measured"] == pytest.approx(expected["measured"], rel=1e-3, abs=1e-6)
    table = study_table(content)
    assert len(table.rows) == 6 and table.rows[3][:3] == ["fisher, control 0.2", "0.05", "task-control"]
    assert "What the diagonal misses" in Path(report.write(folder)).read_text()
    Experiment(config).run(progress=False)
    assert (folder / "interaction.json").read_bytes() == written


def test_a_mask_without_entries_has_a_dash():
    nothing = {part: [0.0, 0.0, 0.0] for part in ("first", "diagonal", "joint", "measured")}
    empty = {"nnz": 0, "samples": 3, **nothing, "ratio": [None, None, None], "spectrum": None}
    entry = {"rule": "fisher", "kappa": 0.1, "mask": "task-control", "seed": None, **empty}
    assert study_table({"masks": [entry]}).rows[0][-2:] == ["-", ""]
