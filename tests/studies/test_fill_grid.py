"""Several fills in one grid: each study is that of the fill alone, and the tests are corrected together."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tomfisher.evaluate.statistics import holm
from tomfisher.locks import locked
from tomfisher.results import Results
from tomfisher.results.fill_grid import gathered, grid_table
from tomfisher.results.row import COLUMNS, rows_of
from tomfisher.studies import Experiment
from tomfisher.studies.fill_grid import run_grid


def test_grid_equals_the_studies_one_by_one(tiny_settings, tmp_path):
    first = Experiment({**tiny_settings, "random_seeds": 1}).run(progress=False)
    folder = Path(tiny_settings["output_path"])
    stores = {f"{which}_store": str(folder / "fisher" / which) for which in ("task", "control")}
    settings = {**tiny_settings, **stores, "random_seeds": 1, "output_path": str(tmp_path / "grid")}
    grid = run_grid(settings, ["scale:0", "scale:2", "mean"], progress=False)
    rows = {
        fill: [replace(row, fill=None, p_holm=None) for row in grid.select(fill=fill)]
        for fill in ("scale:0", "scale:2", "mean")
    }
    assert len(grid.rows) == sum(map(len, rows.values()))
    expected = [row for row in first.rows if row.condition in first.tested]
    assert rows["mean"] == expected != rows["scale:0"] != rows["scale:2"] != expected
    alone = Experiment({**settings, "fill": "scale:2", "output_path": str(tmp_path / "alone")}).run(
        progress=False
    )
    assert rows["scale:2"] == [row for row in alone.rows if row.condition in first.tested]
    table = grid_table(grid).text().splitlines()
    assert len(table) == 3 + 3 * 2 and [line.split()[0] for line in table[2:4]] == ["none", "scale:0"]
    written = list(csv.DictReader((tmp_path / "grid" / "grid.csv").open()))
    assert len(written) == 3 * (1 + 2 * 3) * 2 and tuple(written[0]) == COLUMNS
    assert Results.load(tmp_path / "grid", "grid") == grid
    assert run_grid(settings, ["scale:0", "scale:2", "mean"], progress=False).rows == grid.rows


def point(kappa, mask, accuracy, p):
    score = {"n": 40, "accuracy": accuracy, "ci95": [0.0, 1.0], "p_vs_baseline": p}
    state = {
        "kappa": kappa,
        "mask": mask,
        "seed": None,
        "nnz": 7,
        "perplexity": 10.0,
        "word_perplexity": 20.0,
    }
    return rows_of({**state, "conditions": {"false-belief": score, "all": score}})


def made(entries, base=0.5):
    """A grid from `{fill: [(kappa, accuracy, p)]}`."""
    studies = {}
    for fill, points in entries.items():
        rows = point(0.0, "none", base, None)
        for kappa, accuracy, p in points:
            rows += point(kappa, "task-control", accuracy, p)
        studies[fill] = Results(tuple(rows))
    return gathered(studies)


def test_a_grid_of_an_earlier_version_is_read(tmp_path):
    grid = made({"scale:0": [(1e-3, 0.1, 1e-6)]})
    names = ("fill", "kappa", "mask", "seed", "nnz", "condition", "n", "accuracy", "ci95_low", "ci95_high")
    names += ("p_vs_baseline", "p_holm", "perplexity")
    rows = [{**{name: getattr(row, name) for name in names}, "rise": 0.0} for row in grid.rows]
    old = {"rows": rows, "conclusions": list(grid.conclusions), "provenance": {}}
    (tmp_path / "grid.json").write_text(json.dumps(old))
    found = Results.load(tmp_path, "grid")
    assert found.rows == tuple(replace(row, word_perplexity=None) for row in grid.rows)
    assert found.conclusions == grid.conclusions


def test_rises_and_falls_are_named_after_holm_over_the_whole_grid():
    grid = made(
        {"scale:0": [(1e-3, 0.1, 1e-6), (1e-2, 0.3, 0.02)], "scale:2": [(1e-3, 0.9, 1e-4), (1e-2, 0.8, 0.04)]}
    )
    expected = holm([1e-6, 1e-6, 0.02, 0.02, 1e-4, 1e-4, 0.04, 0.04])
    assert [row.p_holm for row in grid.rows if row.p_holm is not None] == expected
    rises, falls = grid.conclusions
    assert (
        "false-belief at scale:2, kappa 0.001 (0.500 to 0.900" in rises
        and "0.01" not in rises.split("kappa", 1)[1]
    )
    assert "false-belief at scale:0, kappa 0.001 (0.500 to 0.100" in falls and "scale:2" not in falls


def test_nothing_moving_and_no_room_to_rise_are_said():
    rises, falls, *full = made({"scale:0": [(1e-3, 1.0, 1.0)]}, base=1.0).conclusions
    assert "Nothing rises significantly" in rises and "Nothing falls significantly" in falls
    assert full[0] == "The untouched model has false-belief accuracy 1.000: it cannot rise."


def test_bad_fills_are_refused_before_anything_runs(tiny_settings, tmp_path):
    settings = {**tiny_settings, "output_path": str(tmp_path / "grid")}
    with pytest.raises(ValueError, match="fill must be mean"):
        run_grid(settings, ["scale:1.5", "bogus"])
    with pytest.raises(ValueError, match="given once"):
        run_grid(settings, ["scale:1", "scale:1"])
    assert not (tmp_path / "grid").exists()


def test_a_folder_in_use_is_refused_before_anything_runs(tiny_settings, tmp_path):
    folder = tmp_path / "grid"
    folder.mkdir()
    with locked(folder), pytest.raises(ValueError, match="Another tomfisher process is working in"):
        run_grid({**tiny_settings, "output_path": str(folder)}, ["zero", "mean"])
    assert [item.name for item in folder.iterdir()] == [".lock"]
