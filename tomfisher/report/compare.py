"""Two runs beside each other: number by number where that means something, else why not."""

from __future__ import annotations

from typing import Any

from tomfisher.evaluate.records import Scores
from tomfisher.evaluate.statistics import TEST, holm
from tomfisher.report.data import Missing, RunData
from tomfisher.report.provenance import shown
from tomfisher.report.sections import Section
from tomfisher.report.tables import ABSENT
from tomfisher.results.columns import CI95, answers, mask_columns, masks_at, on_text, tested
from tomfisher.results.conditions import conditions_of
from tomfisher.results.row import TASK_CONTROL, Row
from tomfisher.results.tables import PAGE, Column, Line, Table, stacked, table
from tomfisher.results.verdict import headline_tests
from tomfisher.text_files import read_json

_SETTINGS = ("method", "max_new_tokens", "temperature", "top_p", "repetitions")
_LATER_SETTINGS = {  # which configs of older versions lack, and what they did
    "normalize": "total",
    "gap": "auto",
    "bos": "auto",
    "chat_template": False,
    "system_prompt": None,
}


def incomparable(first: RunData, second: RunData) -> list[str]:
    """Why accuracies of two runs cannot be compared item by item; nothing where they can.

    Args:
        first: a run.
        second: another.

    Returns:
        One sentence per reason.
    """
    reasons = []
    if first.task != second.task:
        reasons.append(f"They ask about different tasks ({first.task} and {second.task}).")
    if first.results.headline != second.results.headline:
        reasons.append(
            f"Their verdicts are about different conditions ({first.results.headline} and {second.results.headline})."
        )
    questions = [run.results.provenance.get("data", {}).get("questions") for run in (first, second)]
    if None in questions:
        reasons.append(
            "At least one of them does not say which questions it asked: it did not come to its end."
        )
    elif questions[0] != questions[1] and first.task == second.task:
        reasons.append("The questions themselves differ (another number, split or version).")
    for name in (*_SETTINGS, *_LATER_SETTINGS):
        ours, theirs = (run.config.get(name, _LATER_SETTINGS.get(name)) for run in (first, second))
        if ours != theirs:
            reasons.append(f"The setting {name} differs ({shown(ours)} and {shown(theirs)}).")
    return reasons


def comparison_sections(first: RunData, second: RunData) -> list[Section]:
    """The sections that set two runs beside each other."""
    reasons = incomparable(first, second)
    own = Section(
        "comparison-verdicts",
        "Each by its own measure",
        ["What each study found against its own untouched model and its own controls."],
        tables=[_verdicts(first, second)],
    )
    if reasons:
        notes = [Missing("Not comparable", reason) for reason in reasons]
        text = (
            "The accuracies of these two runs cannot be compared with each other; only what each of them found by its "
            "own measure can stand side by side."
        )
        return [Section("comparison-why", "Not number by number", [text], notes), own]
    return [own, _item_by_item(first, second)]


def _item_by_item(first: RunData, second: RunData) -> Section:
    text = (
        f"Both runs answered the same questions, so p is that of the {TEST} on the same questions in both, after "
        f"Holm over the rows. A: {first.name} ({first.path}). B: {second.name} ({second.path})."
    )
    return Section(
        "comparison-items",
        "On the same questions",
        [text],
        tables=[_paired(first, second), _differing(first, second)],
    )


def _verdicts(first: RunData, second: RunData) -> Table:
    labels, parts = ["run", "effect", "condition", "κ"], []
    for run in (first, second):
        results = run.results
        word = "found" if run.verdict.found else "not found" if run.verdict.enough else "too few questions"
        kappa = ABSENT if run.focus is None else f"{run.focus:g}"
        line = masks_at(results, run.focus, [run.heading, word, results.headline, kappa])
        columns = [*mask_columns(headline_tests(results)), *on_text(results, "perplexity")]
        parts.append(table(labels, columns, [line], PAGE, "The two verdicts.", words=(0, 1, 2)))
    return stacked(parts)


def _paired(first: RunData, second: RunData) -> Table:
    """Untouched and task-minus-control at every κ that both have."""
    pairs = {"untouched": (first.results.baseline(), second.results.baseline())}
    for kappa in first.results.kappas:
        both = [run.results.at(kappa, TASK_CONTROL) for run in (first, second)]
        if all(both):
            pairs[f"task minus control, κ = {kappa:g}"] = both[0][0], both[1][0]
    raw = {a: _paired_test(first, second, a) for a, _ in pairs.values()}
    known = {a: p for a, p in raw.items() if p is not None}
    gains = {a: b.accuracy - a.accuracy for a, b in pairs.values()}
    columns = [
        *answers("A", ci95=CI95),
        *answers("B", beside="B", ci95=CI95),
        Column("B minus A", gains.get, "{:+.3f}"),
        tested(dict(zip(known, holm(list(known.values())), strict=True))),
        *on_text(first.results, "perplexity of A"),
        *on_text(second.results, "perplexity of B", "B"),
    ]
    return table(
        ["mask"],
        columns,
        [Line([label], [a], {"B": [b]}) for label, (a, b) in pairs.items()],
        PAGE,
        f"Accuracy on {first.results.headline} with 95 % intervals. A dash: the records of the questions are not "
        "there.",
    )


def _paired_test(first: RunData, second: RunData, row: Row) -> float | None:
    """The paired test of one state of both runs, or None without the records of the questions."""
    try:
        ours, theirs = (_scores(run, row.key) for run in (first, second))
        return float(conditions_of(theirs, ours)[row.condition]["p_vs_baseline"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _scores(run: RunData, key: str) -> Scores:
    data: dict[str, Any] = read_json(run.path / "points" / f"{key}.json")
    return Scores.from_dict(data["scores"])


def _differing(first: RunData, second: RunData) -> Table:
    names = [
        name
        for name in dict.fromkeys((*first.config, *second.config))
        if name != "output_path" and first.config.get(name) != second.config.get(name)
    ]
    rows = [[name, shown(first.config.get(name)), shown(second.config.get(name))] for name in names]
    return Table(
        "Settings in which the two differ.", ["Setting", "A", "B"], rows or [["none", "", ""]], (0, 1, 2)
    )
