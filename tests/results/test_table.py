from __future__ import annotations

from dataclasses import replace

from tomfisher.results.columns import CI95, COUNT, WEIGHTS, answers, mask_columns, masks_at, on_text
from tomfisher.results.results import Results
from tomfisher.results.row import rows_of
from tomfisher.results.sweep import sweep_table
from tomfisher.results.tables import PAGE, TEXT, Line, align, stacked, table


def point(mask, kappa, false_belief, overall, perplexity, seed=None, nnz=0):
    conditions = {
        name: {"n": 100, "accuracy": value, "ci95": [value - 0.1, value + 0.1], "p_vs_baseline": 1.0}
        for name, value in (("false-belief", false_belief), ("all", overall))
    }
    state = {"kappa": kappa, "mask": mask, "seed": seed, "nnz": nnz, "perplexity": perplexity}
    return rows_of({**state, "conditions": conditions})


RESULTS = Results(
    (
        *point("none", 0.0, 1.0, 0.9, 10.0),
        *point("random", 1e-3, 0.98, 0.9, 10.1, seed=0, nnz=50),
        *point("task-control", 1e-3, 0.2, 0.7, 10.5, nnz=50),
        *point("random", 1e-3, 0.95, 0.9, 9.9, seed=1, nnz=50),
        *point("control-only", 1e-3, 0.97, 0.9, 30.0, nnz=51),
    )
)


def test_one_line_per_mask_with_random_masks_as_a_range():
    lines = sweep_table(RESULTS).text().splitlines()
    assert lines[0].split() == ["kappa", "mask", "weights", "false-belief", "all", "perplexity", "rise"]
    assert lines[2].split() == ["0", "none", "(baseline)", "0", "1.000", "0.900", "10"]
    assert lines[3].split() == ["0.001", "task-control", "50", "0.200", "0.700", "10.5", "+5.0%"]
    assert lines[4].split() == ["0.001", "control-only", "51", "0.970", "0.900", "30", "+200.0%"]
    assert lines[5].split() == [
        "0.001",
        "random",
        "x2",
        "50",
        "0.950..0.980",
        "0.900",
        "9.9..10.1",
        "-1.0%..+1.0%",
    ]
    assert len(lines) == 6


def test_the_caption_says_what_the_correction_runs_over():
    assert "runs over the values of κ of" in sweep_table(RESULTS).caption
    wider = tuple(replace(row, control_kappa=0.1) for row in RESULTS.at(1e-3, "task-control"))
    assert (
        "runs over every task-minus-control mask of the study"
        in sweep_table(Results((*RESULTS.rows, *wider))).caption
    )


def test_columns_line_up():
    lines = align(["name", "n"], [["a", "1"], ["long name", "100"]], left=(0,)).splitlines()
    assert lines == ["name         n", "---------  ---", "a            1", "long name  100"]


def test_one_row_has_its_interval_and_several_are_least_to_most():
    (shown,) = answers("accuracy", "false-belief", ci95=CI95)
    assert shown.cell(Line([], RESULTS.at(1e-3, "task-control")), TEXT) == "0.200 [0.100, 0.300]"
    assert shown.cell(Line([], RESULTS.at(1e-3, "random")), TEXT) == "0.950..0.980"
    assert shown.cell(Line([], ()), PAGE) == "–"
    whole = TEXT._replace(once=False)
    assert COUNT.cell(Line([], RESULTS.at(1e-3, "random")), whole) == "100..100"
    assert COUNT.cell(Line([], RESULTS.at(1e-3, "task-control")), whole) == "100"


def test_all_masks_of_a_kappa_stand_on_one_line():
    tests = dict.fromkeys(RESULTS.at(1e-3, "task-control"), 0.0)
    columns = [WEIGHTS, *mask_columns(tests), *on_text(RESULTS, "perplexity", "control-only")]
    lines = [masks_at(RESULTS, 1e-3, ["0.001"]), masks_at(RESULTS, None, ["–"])]
    shown = table(["κ"], columns, lines, PAGE)
    assert shown.columns[2:4] == ["Untouched", "Task minus control"]
    assert shown.rows == [
        [
            "0.001",
            "50",
            "1.000 [0.900, 1.100]",
            "0.200 [0.100, 0.300]",
            "< 1e-300",
            "0.970 [0.870, 1.070]",
            "0.950 to 0.980",
            "+200.0%",
        ],
        ["–", "–", "1.000 [0.900, 1.100]", *["–"] * 5],
    ]
    assert stacked([shown, shown]).rows == shown.rows * 2


def test_a_state_has_no_rise_over_itself():
    (rise,) = on_text(RESULTS)
    assert rise.cell(Line([], [RESULTS.baseline()]), PAGE) == "–"
