"""The table of an evaluation: a line per condition, the model as it is beside the masked one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tomfisher.evaluate.statistics import TEST
from tomfisher.results.tables import align


def evaluation_table(evaluation: Mapping[str, Any]) -> str:
    """Accuracy of every condition with its 95 % interval, and what perplexity was measured.

    Args:
        evaluation: "baseline" and, where a mask was given, "masked", as `tomfisher.studies.evaluation` gives them.
    """
    base, masked = evaluation["baseline"], evaluation.get("masked")
    header = ["condition", "n", "accuracy", "95 % interval"]
    header += ["masked", "95 % interval", "p"] if masked else []
    rows = []
    for name, score in base["conditions"].items():
        row = [name, str(score["n"]), *_cells(score)]
        if masked:
            after = masked["conditions"][name]
            row += [*_cells(after), f"{after['p_vs_baseline']:.2g}"]
        rows.append(row)
    text = align(header, rows, left=(0,))
    if masked:
        text += f"\np: {TEST}, a test for each row, not corrected for their number"
    for label, state in (("perplexity", base), ("perplexity, masked", masked)):
        if state and "perplexity" in state:
            word = state["word_perplexity"]
            per_word = "not defined per word" if word is None else f"{word:.4g} per word"
            text += f"\n{label}: {state['perplexity']:.4g} per token, {per_word}"
    return text


def _cells(score: Mapping[str, Any]) -> list[str]:
    low, high = score["ci95"]
    return [f"{score['accuracy']:.3f}", f"{low:.3f} to {high:.3f}"]
