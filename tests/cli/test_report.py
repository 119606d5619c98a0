from __future__ import annotations

import shutil

import pytest

from tomfisher.cli.main import main
from tomfisher.results import Results
from tomfisher.results.row import rows_of

CONDITIONS = {"false-belief": {"n": 10, "accuracy": 0.5, "ci95": [0.24, 0.76], "p_vs_baseline": 1.0}}


@pytest.fixture
def run(tmp_path):
    """A study of one κ without control masks, an effect or an analysis."""
    conditions = CONDITIONS | {"all": CONDITIONS["false-belief"]}
    baseline = {"kappa": 0.0, "mask": "none", "nnz": 0, "conditions": conditions, "perplexity": 10.0}
    masked = {**baseline, "kappa": 1e-4, "mask": "task-control", "nnz": 7, "perplexity": 10.1}
    provenance = {"config": {"model": "tiny", "task": "stories", "control": "prose"}}
    folder = tmp_path / "run"
    folder.mkdir()
    Results((*rows_of(baseline), *rows_of(masked)), provenance).save(folder)
    return folder


def test_it_writes_page_and_figures_and_says_the_verdict_and_the_gaps(run, capsys):
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out
    assert "tiny, stories against prose: Not found: no kappa meets the rule" in out
    assert "not in the report: What happened inside the model" in out
    assert "not in the report: Random masks" in out
    assert f"Report:  {run}/report.html" in out and f"Figures: {run}/figures" in out
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert {file.name for file in (run / "figures").iterdir()} == {
        "accuracy.png",
        "accuracy.svg",
        "perplexity.png",
        "perplexity.svg",
    }


def test_two_runs_share_a_page_at_the_place_that_is_named(run, tmp_path, capsys):
    page = tmp_path / "both.html"
    assert main(["report", str(run), str(run), "--output_path", str(page)]) == 0
    assert "Side by side" in page.read_text()
    assert not (run / "report.html").exists()
    assert f"Report:  {page}" in capsys.readouterr().out


def test_two_runs_of_one_study_are_told_apart_by_their_folders(run, tmp_path, capsys):
    other = tmp_path / "second"
    shutil.copytree(run, other)
    assert main(["report", str(run), str(other)]) == 0
    out, page = capsys.readouterr().out, (run / "report.html").read_text()
    for folder in ("run", "second"):
        heading = f"tiny, stories against prose ({folder})"
        assert f"{heading}: Not" in out
        assert f">{heading}</a>" in page and f"{heading}</h2>" in page
        assert f'<th scope="row">{heading}</th>' in page
    assert "<title>Sensitive weights of tiny: run and second</title>" in page


def test_folders_of_the_same_name_are_told_apart_by_their_paths(run, tmp_path, capsys):
    other = tmp_path / "elsewhere" / "run"
    shutil.copytree(run, other)
    assert main(["report", str(run), str(other)]) == 0
    out = capsys.readouterr().out
    assert f"({run}): " in out and f"({other}): " in out


def test_a_folder_without_results_is_an_error_with_the_way_out(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "has no results.json" in (message := capsys.readouterr().err) and "tomfisher run" in message
    assert list(tmp_path.iterdir()) == []
