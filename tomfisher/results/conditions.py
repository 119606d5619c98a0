"""What was measured in a state, as its rows say it: every condition of the questions, and the perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tomfisher.evaluate.records import ALL, GroupScore, Record, Scores
from tomfisher.evaluate.statistics import sign_flip_test
from tomfisher.results.row import HEADLINE, Row, rows_of, states_of

if TYPE_CHECKING:
    from tomfisher.evaluate.perplexity import Perplexity

Members = dict[str, tuple[float, str]]  # correctness and cluster of each item of a condition, by id


def conditions_of(scores: Scores, baseline: Scores | None = None) -> dict[str, dict[str, Any]]:
    """Accuracy, interval and test of every condition of an evaluation.

    Beside the groups of the records and "all" there are unions and cells: "false-belief" is the belief
    questions of every family's false-belief condition, "false-belief/reality" the reality questions on the
    same stories, and "<condition>/both" counts cells, right when all their questions are.

    Args:
        scores: what was measured.
        baseline: the same stories on the untouched model, or None when this is it.

    Returns:
        `{condition: {"n", "n_scenes", "accuracy", "ci95", "p_vs_baseline"}}`.
    """
    before = None if baseline is None else members_of(baseline)
    conditions = {}
    for name, members in members_of(scores).items():
        values, clusters = zip(*members.values(), strict=True)
        earlier = None if before is None else [before[name][key][0] for key in members]
        p = None if earlier is None else sign_flip_test(earlier, values, clusters)
        conditions[name] = {**GroupScore.of(members.values()).to_dict(), "p_vs_baseline": p}
    return conditions


def measured(scores: Scores, baseline: Scores | None = None, **state: Any) -> list[Row]:
    """The rows of a state whose questions were just answered.

    Args:
        scores: the answers.
        baseline: those of the untouched model, or None when this is it.
        state: what else the rows say (fields of `Row`).
    """
    return rows_of({**state, "conditions": conditions_of(scores, baseline)})


def perplexities(perplexity: Perplexity) -> dict[str, Any]:
    """What the rows of a state say of its text (fields of `Row`)."""
    return {"perplexity": perplexity.token, "word_perplexity": perplexity.word}


def by_clusters(rows: Sequence[Row], scores: Scores, baseline: Scores | None = None) -> list[Row]:
    """Rows of one state whose intervals and tests are by clusters, made again from its records where they are not.

    Args:
        rows: as they were saved; earlier versions counted every question as independent.
        scores: the state's records.
        baseline: those of the untouched model, or None when this is it.
    """
    if rows[0].n_clusters is not None:
        return list(rows)
    (state,) = states_of(rows)
    return measured(scores, baseline, **{key: value for key, value in state.items() if key != "conditions"})


def members_of(scores: Scores) -> dict[str, Members]:
    """Correctness and cluster of each item, by its id, of each condition of `conditions_of`; "all" last."""
    groups: dict[str, Members] = {}
    unions: dict[str, Members] = {}
    cells: dict[str, dict[str, list[Record]]] = {}
    for record in scores.records:
        item = record.correct, record.scene
        groups.setdefault(record.group, {})[record.id] = item
        cells.setdefault(f"{record.condition}/both", {}).setdefault(record.cell, []).append(record)
        if record.condition.endswith(f"/{HEADLINE}"):
            name = HEADLINE if record.kind == "belief" else f"{HEADLINE}/{record.kind}"
            unions.setdefault(name, {})[record.id] = item
    together = {
        name: {
            cell: (Scores(tuple(records)).cells()[ALL].accuracy, records[0].scene)
            for cell, records in by_cell.items()
        }
        for name, by_cell in cells.items()
        if any(len(records) > 1 for records in by_cell.values())
    }
    everything = {record.id: (record.correct, record.scene) for record in scores.records}
    return {**unions, **groups, **together, ALL: everything}
