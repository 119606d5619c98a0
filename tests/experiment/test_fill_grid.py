"""Several fills in one grid: each study is that of the fill alone, and the tests are corrected together."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tomfisher.experiment import Experiment, Point, Results
from tomfisher.experiment.fill_grid import FillGrid, run_grid
from tomfisher.experiment.verdict import holm


def test_grid_equals_the_studies_one_by_one(tiny_settings, tmp_path):
    first = Experiment({**tiny_settings, "random_seeds": 1}).run(progress=False)
    folder = Path(tiny_settings["output_path"])
    stores = {f"{which}_store": str(folder / "fisher" / which) for which in ("task", "control")}
    settings = {**tiny_settings, **stores, "random_seeds": 1, "output_path": str(tmp_path / "grid")}
    grid = run_grid(settings, ["scale:0", "scale:2", "mean"], progress=False)
    assert list(grid.results) == ["scale:0", "scale:2", "mean"]
    assert grid.results["mean"].points == first.points
    assert grid.results["scale:0"].points != first.points != grid.results["scale:2"].points
    alone = {**settings, "fill": "scale:2", "output_path": str(tmp_path / "alone")}
    assert grid.results["scale:2"].points == Experiment(alone).run(progress=False).points
    table = grid.render().splitlines()
    assert len(table) == 3 + 3 * 2 and [line.split()[0] for line in table[2:4]] == ["none", "scale:0"]
    rows = list(csv.DictReader((tmp_path / "grid" / "grid.csv").open()))
    assert len(rows) == 3 * (1 + 2 * 3) * 2
    assert len(json.loads((tmp_path / "grid" / "grid.json").read_text())["rows"]) == len(rows)
    again = run_grid(settings, ["scale:0", "scale:2", "mean"], progress=False)
    assert {fill: found.points for fill, found in again.results.items()} == {
        fill: found.points for fill, found in grid.results.items()
    }


def point(kappa, mask, accuracy, p):
    score = {"n": 40, "accuracy": accuracy, "ci95": [0.0, 1.0], "p_vs_baseline": p}
    return Point(kappa, mask, None, 7, {"false-belief": score, "all": dict(score)}, 10.0, 20.0)


def made(entries, base=0.5):
    """A grid from `{fill: [(kappa, accuracy, p)]}`."""
    studies = {
        fill: Results(
            point(0.0, "none", base, None), tuple(point(k, "task-control", a, p) for k, a, p in points)
        )
        for fill, points in entries.items()
    }
    return FillGrid(studies, Path("nowhere"))


def test_rises_and_falls_are_named_after_holm_over_the_whole_grid():
    grid = made(
        {"scale:0": [(1e-3, 0.1, 1e-6), (1e-2, 0.3, 0.02)], "scale:2": [(1e-3, 0.9, 1e-4), (1e-2, 0.8, 0.04)]}
    )
    expected = holm([1e-6, 1e-6, 0.02, 0.02, 1e-4, 1e-4, 0.04, 0.04])
    assert list(grid.corrected().values()) == expected
    rises, falls = grid.sentences()
    assert (
        "false-belief at scale:2, kappa 0.001 (0.500 to 0.900" in rises
        and "0.01" not in rises.split("kappa", 1)[1]
    )
    assert "false-belief at scale:0, kappa 0.001 (0.500 to 0.100" in falls and "scale:2" not in falls


def test_nothing_moving_and_no_room_to_rise_are_said():
    rises, falls, *full = made({"scale:0": [(1e-3, 1.0, 1.0)]}, base=1.0).sentences()
    assert "Nothing rises significantly" in rises and "Nothing falls significantly" in falls
    assert full[0] == "The untouched model has false-belief accuracy 1.000: it cannot rise."


def test_bad_fills_are_refused_before_anything_runs(tiny_settings, tmp_path):
    settings = {**tiny_settings, "output_path": str(tmp_path / "grid")}
    with pytest.raises(ValueError, match="fill must be mean"):
        run_grid(settings, ["scale:1.5", "bogus"])
    with pytest.raises(ValueError, match="given once"):
        run_grid(settings, ["scale:1", "scale:1"])
    assert not (tmp_path / "grid").exists()
