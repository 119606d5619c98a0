"""Masks of other rules in a study: the grid against single masks, resuming, columns, verdict, report."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tomfisher import FisherDiagonal, SparseMask, report, top_fraction
from tomfisher.masks import criteria
from tomfisher.masks.criteria import Known
from tomfisher.models import load_model
from tomfisher.results import Results, judge
from tomfisher.results.frontier import criteria_table, frontier_table
from tomfisher.results.results import SWEEP_COLUMNS
from tomfisher.results.rule import PAPER, Rule
from tomfisher.studies import Config, Experiment
from tomfisher.studies.points import planned_points

pytestmark = pytest.mark.slow


def run(settings):
    return Experiment(Config.from_dict(settings)).run(progress=False)


@pytest.fixture
def settings(tiny_settings):
    return {
        **tiny_settings,
        "kappas": [0.02, 0.05],
        "control_kappa": [0.05, 0.2],
        "criterion": ["ratio", *criteria.NAMES[2:]],
        "random_seeds": 1,
        "limit": 24,
        "n_task": 6,
        "n_control": 6,
        "perplexity_tokens": 200,
        "analysis_prompts": 0,
    }


@pytest.fixture
def finished(settings, once):
    return once(run, settings)


def mask_of(folder, rule, kappa, mask="task-control"):
    return SparseMask.load(folder / "masks" / f"{rule.named(mask, kappa)}.safetensors")


def test_the_grid_is_made_of_single_masks(finished):
    folder = Path(finished["output_path"])
    task, control = (FisherDiagonal.load(folder / "fisher" / which) for which in ("task", "control"))
    for kappa in (0.02, 0.05):
        for protected in (kappa, 0.05, 0.2):
            rule = PAPER if protected == kappa else Rule(None, protected)
            expected = top_fraction(task, kappa) - top_fraction(control, protected)
            assert mask_of(folder, rule, kappa) == expected
            mirrored = top_fraction(control, kappa) - top_fraction(task, protected)
            assert mask_of(folder, rule, kappa, "control-only") == mirrored
    assert mask_of(folder, Rule(None, 0.2), 0.02) != mask_of(folder, PAPER, 0.02)


def test_masks_of_criteria_that_need_no_pass_are_those_of_their_scores(finished):
    folder = Path(finished["output_path"])
    task, control = (FisherDiagonal.load(folder / "fisher" / which) for which in ("task", "control"))
    weights = dict(load_model(finished["model"], dtype="fp32", device="cpu").model.named_parameters())
    ratio = {n: criteria.get("ratio")(Known(fisher=task[n], other=control[n])) for n in task}
    assert mask_of(folder, Rule("ratio"), 0.05) == top_fraction(ratio, 0.05)
    size = {n: weights[n].detach().abs() for n in task}
    assert mask_of(folder, Rule("magnitude"), 0.05) == top_fraction(size, 0.05)
    filled = [
        {n: F[n].double() * (w := weights[n].detach().double()).sub(w.mean()).square() for n in F}
        for F in (task, control)
    ]
    expected = top_fraction(filled[0], 0.05) - top_fraction(filled[1], 0.2)
    assert mask_of(folder, Rule("fill", 0.2), 0.05) == expected


def test_random_masks_have_the_counts_of_their_rule_and_magnitude_has_no_control(finished):
    results = Results.load(finished["output_path"])
    for rule in results.rules:
        (own,) = results.at(0.02, "task-control", rule=rule)
        (random,) = results.at(0.02, "random", rule=rule)
        assert random.nnz == own.nnz
        # the control may leave nothing of a ranking that hardly depends on the texts
        assert own.nnz or rule.control_kappa == 0.2
    assert not results.at(0.05, "control-only", rule=Rule("magnitude"))
    assert Rule("magnitude", 0.2) not in results.rules and Rule("taylor", 0.2) in results.rules
    assert not results.at(0.05, "task-control", rule=Rule(None, 0.05))  # the paper's own


def test_columns_are_appended_and_the_verdict_counts_every_mask(finished):
    results = Results.load(finished["output_path"])
    with (Path(finished["output_path"]) / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == (*SWEEP_COLUMNS, "criterion", "control_kappa")
    assert {row["criterion"] for row in rows} == {"", *criteria.NAMES[1:]}
    tests = [row for row in results.rows if row.mask == "task-control" and row.condition == results.headline]
    assert results.held_out is not None and 1 <= results.held_out.candidates <= len(tests)
    assert f"with {len(tests)} masks" in str(judge(results))  # six clusters are too few for so many
    table = frontier_table(results)
    assert len(table.rows) == 1 + len(tests)
    assert [row[0] for row in criteria_table(results).rows] == list(criteria.NAMES)
    page = report.write(finished["output_path"])
    assert "Ability lost against language lost" in Path(page).read_text()
    assert (Path(finished["output_path"]) / "figures" / "frontier.svg").is_file()


def test_a_resumed_study_gives_the_same_and_takes_no_pass_again(finished, monkeypatch):
    folder = Path(finished["output_path"])
    before = (folder / "results.csv").read_bytes()
    lost = [plan for plan in planned_points(Config.from_dict(finished)) if plan.rule == Rule("taylor", 0.2)]
    for plan in lost:
        (folder / "points" / f"{plan.key}.json").unlink()
    monkeypatch.setattr("tomfisher.fisher.first_moments.first_moments", lambda *a, **k: pytest.fail("a pass"))
    run(finished)
    assert len(lost) == 6 and (folder / "results.csv").read_bytes() == before


def test_a_study_without_other_rules_has_no_trace_of_them(tiny_settings):
    results = run({**tiny_settings, "random_seeds": 1, "kappas": [0.05], "analysis_prompts": 0, "limit": 12})
    header = (Path(tiny_settings["output_path"]) / "results.csv").read_text().splitlines()[0]
    assert tuple(header.split(",")) == SWEEP_COLUMNS
    assert results.held_out is None and "held_out" not in results.to_dict()
    assert not (Path(tiny_settings["output_path"]) / "criteria").exists()
