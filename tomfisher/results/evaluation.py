"""The table of an evaluation: a line per condition, the model as it is beside the masked one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tomfisher.evaluate.statistics import TEST
from tomfisher.results.columns import COUNT, answers, interval, p_value
from tomfisher.results.row import rows_of
from tomfisher.results.tables import Column, Line, table


def evaluation_table(evaluation: Mapping[str, Any]) -> str:
    """Accuracy of every condition with its 95 % interval, and what perplexity was measured.

    Args:
        evaluation: "baseline" and, where a mask was given, "masked", as `tomfisher.studies.evaluation` gives them.
    """
    base, masked = evaluation["baseline"], evaluation.get("masked")
    columns = [COUNT, *answers("accuracy"), interval()]
    if masked:
        p = Column("p", lambda row: row.p_vs_baseline, p_value, beside="masked")
        columns += [*answers("masked", beside="masked"), interval(beside="masked"), p]
    after = {row.condition: row for row in rows_of({"conditions": masked["conditions"]})} if masked else {}
    before = rows_of({"conditions": base["conditions"]})
    lines = [
        Line([row.condition], [row], {"masked": [after[row.condition]]} if masked else {}) for row in before
    ]
    text = table(["condition"], columns, lines).text()
    if masked:
        text += f"\np: {TEST}, a test for each row, not corrected for their number"
    for label, state in (("perplexity", base), ("perplexity, masked", masked)):
        if state and "perplexity" in state:
            word = state["word_perplexity"]
            per_word = "not defined per word" if word is None else f"{word:.4g} per word"
            text += f"\n{label}: {state['perplexity']:.4g} per token, {per_word}"
    return text
