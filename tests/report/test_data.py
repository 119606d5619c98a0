from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tomfisher.report import load
from tomfisher.results.row import grouped, states_of


def whats(data):
    return [missing.what for missing in data.missing]


def test_a_whole_run_misses_nothing(run):
    data = load(run)
    assert data.complete and data.missing == ()
    assert data.name == "tiny, stories against prose"
    assert (
        data.values["task"]["num_samples"] == 30
        and data.inside["kappa"] == 1e-3
        and set(data.extras) == {"ablations"}
    )
    assert data.verdict.found and data.verdict.kappa == data.focus == 1e-3


def test_no_folder_and_an_empty_one_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"is not a folder. Give the --output_path of a study"):
        load(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"no results.json and no measured baseline.*tomfisher run --output_path"
    ):
        load(tmp_path)


def test_damaged_results_are_refused(run):
    (run / "results.json").write_text('{"baseline": 1')
    with pytest.raises(ValueError, match=r"is not a results.json of tomfisher .*Run the study again"):
        load(run)


def test_an_interrupted_study_is_read_from_its_points(run, results):
    (run / "results.json").unlink()
    measured = list(grouped(results.rows))[:6]
    for rows in measured:
        file = run / "points" / f"{rows[0].key}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"point": states_of(rows)[0], "scores": {}}))
    (run / "points" / "broken.json").write_text("{")
    data = load(run)
    assert not data.complete
    assert data.results.rows[: len(measured[0])] == tuple(measured[0])
    assert set(data.results.rows) == {row for rows in measured for row in rows}
    assert data.name == "tiny, stories against prose"
    assert whats(data) == ["The end of the study", "Control-only masks", "Random masks"]
    assert "5 points are measured, at 2 of 3 values of kappa" in data.missing[0].why
    assert data.missing[0].why.startswith("Unfinished: run the same command to resume.")
    assert "at kappa = 0.0001" in data.missing[1].why


@pytest.mark.parametrize("mask, what", [("control-only", "Control-only masks"), ("random", "Random masks")])
def test_absent_controls_are_named(make_run, results, inside, mask, what):
    rows = tuple(row for row in results.rows if row.mask != mask)
    data = load(make_run(results=replace(results, rows=rows), inside=inside))
    assert whats(data) == [what] and "at any kappa" in data.missing[0].why


def test_a_run_without_analysis_says_how_to_get_it(make_run):
    folder = make_run()
    (missing,) = load(folder).missing
    assert missing.what == "What happened inside the model"
    assert f"tomfisher run --config {folder / 'config.yaml'}" in missing.why


def test_the_way_to_an_analysis_asks_for_prompts_where_the_study_has_none_and_names_a_moved_folder(
    make_run, results
):
    config = {**results.provenance["config"], "analysis_prompts": 0, "output_path": "elsewhere"}
    folder = make_run(results=replace(results, provenance={**results.provenance, "config": config}))
    (missing,) = load(folder).missing
    command = f"tomfisher run --config {folder / 'config.yaml'} --output_path {folder} --analysis_prompts 64"
    assert f"{command} adds it" in missing.why


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"kappa": 1}'])
def test_a_damaged_analysis_is_missing_and_the_rest_is_there(make_run, content):
    folder = make_run()
    (folder / "analysis.json").write_text(content)
    data = load(folder)
    assert data.inside is None and "analysis.json" in data.missing[0].why
    assert data.verdict.found


def test_a_run_of_an_older_version_says_what_adds_its_fisher_values(make_run, inside):
    folder = make_run(inside=inside, **{"fisher-values": None})
    data = load(folder)
    assert data.values is None and whats(data) == ["How large the Fisher values are"]
    assert f"tomfisher run --config {folder / 'config.yaml'} adds it" in data.missing[0].why


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"task": {}}'])
def test_damaged_fisher_values_are_missing_and_the_rest_is_there(run, content):
    (run / "fisher-values.json").write_text(content)
    data = load(run)
    assert data.values is None and "fisher-values.json" in data.missing[0].why
    assert data.inside is not None and data.verdict.found


@pytest.mark.parametrize("content", ["no", '{"states": [1]}', '{"states": [{"conditions": {"all": {}}}]}'])
def test_a_damaged_optional_file_is_named(run, content):
    (run / "finetune.json").write_text(content)
    data = load(run)
    assert whats(data) == ["finetune.json"] and set(data.extras) == {"ablations"}
    assert f"tomfisher finetune {run} --kappa KAPPA --overwrite" in data.missing[0].why


def test_without_an_effect_the_analysis_says_which_kappa_is_shown(make_run, results, inside):
    calm = {row.condition: row for row in results.select(kappa=1e-5, mask="task-control")}
    weak = tuple(
        replace(calm[row.condition], kappa=row.kappa) if row.mask == "task-control" else row
        for row in results.rows
    )
    data = load(make_run(results=replace(results, rows=weak), inside=inside | {"kappa": 1e-4}))
    assert not data.verdict.found and data.focus == 1e-4
