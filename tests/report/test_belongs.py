"""Ablations, training and grids are shown only where they are of the run whose folder they lie in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tomfisher import SparseMask
from tomfisher.report import load, write
from tomfisher.results.row import states_of

pytestmark = pytest.mark.slow

MASK = SparseMask({"w": torch.tensor([1, 3])}, {"w": (2, 3)}, 1e-3, "tensor")
OTHER = SparseMask({"w": torch.tensor([1, 4])}, {"w": (2, 3)}, 1e-3, "tensor")
ORIGIN = {
    "model": {"weights_sha256": "w" * 64},
    "data": {"questions": "q" * 64, "control": "c" * 64},
    "fisher": {"task": {"data_sha256": "t"}, "control": {"data_sha256": "u"}},
}
ASKED = {"task": "stories", "limit": 40, "seed": 0}


def of_run(mask=MASK, **changes):
    return {**ORIGIN, "config": ASKED, "mask": {"sha256": mask.sha256}, **changes}


@pytest.fixture
def folder(make_run, results, inside):
    config = {**results.provenance["config"], **ASKED}
    run = make_run(
        results=replace(results, provenance={**results.provenance, **ORIGIN, "config": config}), inside=inside
    )
    (run / "masks").mkdir()
    MASK.save(run / "masks" / "task-control-0.001.safetensors")
    return run


def put(folder, name, content, origin):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / f"{name}.json").write_text(json.dumps({**content, "provenance": origin}))


def test_what_was_made_of_this_run_is_shown(folder, ablations):
    put(folder, "ablations", ablations, of_run())
    data = load(folder)
    assert set(data.extras) == {"ablations"} and data.missing == ()


@pytest.mark.parametrize(
    ("origin", "why"),
    [
        (of_run(OTHER), "its mask is none of those in"),
        (of_run(model={"weights_sha256": "x" * 64}), "the model has other weights"),
        (of_run(data={"questions": "q" * 64, "control": "d" * 64}), "the task or the control text differs"),
        (of_run(data={"questions": "r" * 64, "control": "c" * 64}), "the questions differ"),
        (of_run(config={**ASKED, "task": "irony"}), "the task or the control text differs"),
    ],
)
@pytest.mark.parametrize("name", ["ablations", "finetune"])
def test_what_is_of_something_else_is_named_with_the_way_out(folder, ablations, name, origin, why):
    put(folder, name, ablations, origin)
    data = load(folder)
    (missing,) = data.missing
    assert data.extras == {} and missing.what == f"{name}.json"
    assert why in missing.why and "--overwrite" in missing.why and str(folder) in missing.why
    page = write(folder).read_text()
    assert ">Ablations</h3>" not in page and why.split(" in")[0] in page


def test_fewer_questions_on_purpose_and_extras_that_say_nothing_are_shown(folder, ablations):
    fewer = of_run(config={**ASKED, "limit": 8}, data={"questions": "r" * 64, "control": "c" * 64})
    put(folder, "ablations", ablations, fewer)
    assert set(load(folder).extras) == {"ablations"}
    put(folder, "ablations", ablations, None)
    assert set(load(folder).extras) == {"ablations"}


def test_a_run_whose_masks_are_gone_cannot_tell(folder, ablations):
    put(folder, "ablations", ablations, of_run(OTHER))
    (folder / "masks" / "task-control-0.001.safetensors").unlink()
    assert set(load(folder).extras) == {"ablations"}


def test_an_interrupted_study_knows_its_model_from_its_inputs(folder, results, ablations):
    baseline, *_ = states_of(results.rows)
    (folder / "results.json").unlink()
    (folder / "points").mkdir()
    (folder / "points" / "baseline.json").write_text(json.dumps({"point": baseline, "scores": {}}))
    (folder / "inputs.json").write_text(json.dumps({"evaluation_model": {"weights_sha256": "w" * 64}}))
    put(folder, "ablations", ablations, of_run())
    assert set(load(folder).extras) == {"ablations"}
    put(folder, "ablations", ablations, of_run(model={"weights_sha256": "x" * 64}))
    assert load(folder).extras == {}
