from __future__ import annotations

import csv
import json
from dataclasses import fields, replace

import pytest

from tomfisher.evaluate.records import Record, Scores
from tomfisher.evaluate.statistics import wilson_interval
from tomfisher.results.conditions import by_clusters, conditions_of, measured
from tomfisher.results.results import Results
from tomfisher.results.row import COLUMNS, Row, rows_of, states_of


def record(condition, cell, kind, correct):
    group = condition if kind == "belief" else f"{condition}/reality"
    return Record(f"{condition}/{cell}/{kind}", group, condition, f"{condition}/{cell}", kind, correct, "x")


def scores(values):
    return Scores(tuple(record(*key, correct) for key, correct in values.items()))


def table(belief, reality):
    """Two families, two conditions; the correctness of the false-belief questions is given per family."""
    values = {}
    for family in ("contents", "transfer"):
        for i, (b, r) in enumerate(zip(belief[family], reality, strict=True)):
            values[f"{family}/false-belief", str(i), "belief"] = b
            values[f"{family}/false-belief", str(i), "reality"] = r
            values[f"{family}/informed", str(i), "belief"] = 1.0
    return scores(values)


BEFORE = table({"contents": [1, 1, 1, 0], "transfer": [1, 1, 1, 1]}, [1, 1, 1, 1])
AFTER = table({"contents": [0, 0, 1, 0], "transfer": [0, 0, 0, 1]}, [1, 0, 1, 1])


def test_false_belief_is_the_union_over_families_and_all_counts_questions_once():
    found = conditions_of(AFTER)
    assert found["false-belief"]["n"] == 8 and found["false-belief"]["accuracy"] == 2 / 8
    assert found["false-belief/reality"]["accuracy"] == 6 / 8
    assert found["contents/false-belief"]["accuracy"] == 1 / 4
    assert found["all"]["n"] == len(AFTER.records) == 24
    assert found["all"]["accuracy"] == (2 + 6 + 8) / 24
    assert list(found)[-1] == "all"


def test_a_cell_counts_only_when_both_questions_are_right():
    found = conditions_of(AFTER)
    assert found["contents/false-belief/both"] | {"ci95": 0} == {
        "n": 4, "n_scenes": 4, "accuracy": 1 / 4, "ci95": 0, "p_vs_baseline": None
    }  # fmt: skip
    assert "contents/informed/both" not in found  # one question per cell: nothing to join


def test_p_is_the_exact_two_sided_paired_test():
    found = conditions_of(AFTER, BEFORE)
    # contents loses 2, transfer loses 3, nothing is gained
    assert found["false-belief"]["p_vs_baseline"] == pytest.approx(2 * 0.5**5)
    assert found["contents/false-belief"]["p_vs_baseline"] == pytest.approx(2 * 0.5**2)
    assert found["contents/informed"]["p_vs_baseline"] == 1.0


def directions(right, cells=5):
    """Both directions of each scene, with a belief and a reality question each."""
    return scores(
        {
            ("contents/false-belief", f"{i}/false-belief/{direction}", kind): right
            if kind == "belief"
            else 1.0
            for i in range(cells)
            for direction in ("as-written", "swapped")
            for kind in ("belief", "reality")
        }
    )


def test_two_directions_of_a_scene_are_one_observation():
    found = conditions_of(directions(0.0), directions(1.0))
    for name in ("false-belief", "contents/false-belief", "contents/false-belief/both", "all"):
        assert (found[name]["n"], found[name]["n_scenes"]) == (20 if name == "all" else 10, 5)
        assert found[name]["p_vs_baseline"] == 2 / 2**5, name
    assert tuple(found["false-belief"]["ci95"]) == pytest.approx(wilson_interval(0, 5))
    assert tuple(found["false-belief/reality"]["ci95"]) == pytest.approx(wilson_interval(5, 5))


def test_points_of_earlier_versions_are_counted_by_scenes():
    before, after = directions(1.0), directions(0.0)
    rows = state("task-control", 1e-4, 12, 10.5, 31.0, after, before)
    old = [replace(row, n_clusters=None, ci95_low=0, ci95_high=1, p_vs_baseline=2 / 2**10) for row in rows]
    assert by_clusters(old, after, before) == rows
    assert by_clusters(rows, after, None) == rows  # as they are


def state(mask, kappa, nnz, perplexity, word, scores, baseline=None, seed=None):
    facts = {"kappa": kappa, "mask": mask, "seed": seed, "nnz": nnz}
    return measured(scores, baseline, **facts, perplexity=perplexity, word_perplexity=word)


def study():
    rows = [
        *state("none", 0.0, 0, 10.0, 30.0, BEFORE),
        *state("task-control", 1e-4, 12, 10.5, 31.0, AFTER, BEFORE),
        *state("random", 1e-4, 12, 10.0, 30.0, BEFORE, BEFORE, seed=0),
        *state("random", 1e-4, 12, 11.0, 30.0, BEFORE, BEFORE, seed=1),
    ]
    return Results(tuple(rows), {"seeds": [0, 1]})


def test_results_json_round_trip_and_shape(tmp_path):
    results = study()
    results.save(tmp_path)
    again = Results.load(tmp_path)
    assert again == results
    data = results.to_dict()
    assert list(data) == ["baseline", "points", "provenance"]
    wanted = {"kappa", "mask", "seed", "nnz", "conditions", "perplexity", "word_perplexity"}
    assert set(data["points"][0]) == wanted
    assert set(data["points"][0]["conditions"]["all"]) == {
        "n",
        "n_scenes",
        "accuracy",
        "ci95",
        "p_vs_baseline",
    }


def test_every_field_of_a_row_comes_back_from_json_on_its_own_condition():
    examples = {"str": "x", "int": 7, "float": 0.5, "bool": True, "tuple[str, ...]": ("x", "y")}
    first = Row(**{field.name: examples[str(field.type).removesuffix(" | None")] for field in fields(Row)})
    of_condition = COLUMNS[COLUMNS.index("condition") : COLUMNS.index("perplexity")]
    other = {name: getattr(first, name) * 2 for name in of_condition}
    rows = [first, replace(first, **other)]
    (state,) = json.loads(json.dumps(states_of(rows)))
    assert rows_of(state) == rows


def test_csv_has_one_row_per_point_and_condition(tmp_path):
    results = study()
    results.save(tmp_path)
    with (tmp_path / "results.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 4 * len(results.conditions)
    row = next(r for r in rows if r["mask"] == "task-control" and r["condition"] == "false-belief")
    assert (float(row["kappa"]), int(row["n"]), float(row["accuracy"])) == (1e-4, 8, 0.25)
    assert float(row["ci95_low"]) < 0.25 < float(row["ci95_high"])
    assert float(row["perplexity"]) == 10.5


def test_a_damaged_results_file_is_named(tmp_path):
    (tmp_path / "results.json").write_text('{"baseline": {}}')
    with pytest.raises(ValueError, match=r"is not a results\.json of tomfisher"):
        Results.load(tmp_path)
