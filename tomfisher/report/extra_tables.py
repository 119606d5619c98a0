"""Tables of what was done with a run after it: ablations, training, other fills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tomfisher.evaluate.records import ALL
from tomfisher.evaluate.statistics import TEST
from tomfisher.report.ablations import controls
from tomfisher.report.tables import ABSENT, interval, number, p_value, span
from tomfisher.results.ablations import interventions
from tomfisher.results.results import Results, corrected
from tomfisher.results.row import BASELINE, CONTROL_ONLY, RANDOM, TASK_CONTROL
from tomfisher.results.tables import Table


def ablation_table(ablations: Mapping[str, Any]) -> Table:
    """One row per intervention, the range over its controls after it."""
    results = Results.from_dict(ablations)
    name, rows = results.headline, interventions(results)
    p = corrected(rows)
    return Table(
        f"Interventions: accuracy on {name} with its 95 % interval, p of the {TEST} after Holm over all {len(rows)} "
        "interventions, perplexity, and the accuracy of their controls, least to most.",
        ["Intervention", "Weights", f"Accuracy: {name}", "p (Holm)", "Perplexity", "Rise", "Controls"],
        [
            [
                row.state or "none (untouched)",
                f"{row.nnz:,}" if row.state else "0",
                interval({"accuracy": row.accuracy, "ci95": row.ci95}),
                p_value(p.get(row)),
                f"{row.perplexity:.4g}",
                f"{results.rise(row):+.1%}" if row.state else ABSENT,
                span(controls(results, row), "{:.3f}"),
            ]
            for row in (results.baseline(), *rows)
        ],
    )


def finetune_table(found: Mapping[str, Any]) -> Table:
    """One row per state of a comparison of trainings."""
    results = Results.from_dict(found)
    name = results.headline
    states = results.select(condition=name)
    known = corrected((row for row in states if row.p_vs_start is not None), "p_vs_start")
    rows = [
        [
            str(row.state) if row.seed is None else f"{row.state} (seed {row.seed})",
            f"{row.trainable:,}",
            number(row.learning_rate, "{:g}"),
            interval({"accuracy": row.accuracy, "ci95": row.ci95}),
            p_value(known.get(row)),
            f"{everything.accuracy:.3f}",
            f"{row.perplexity:.4g}",
            ABSENT if row is states[0] else f"{results.rise(row):+.1%}",
        ]
        for row, everything in zip(states, results.select(condition=ALL), strict=True)
    ]
    return Table(
        f"Accuracy on {name} before and after training, with 95 % intervals; p is that of the {TEST} against the "
        "start, after Holm over the trainings.",
        [
            "State",
            "Trained",
            "Rate",
            f"Accuracy: {name}",
            "p (Holm)",
            f"Accuracy: {ALL}",
            "Perplexity",
            "Change",
        ],
        rows,
    )


def grid_table(found: Mapping[str, Any]) -> Table:
    """One row per fill, κ and condition of the task's masks, the controls behind it."""
    grid = Results.from_dict(found)
    rows = []
    for row in grid.select(mask=TASK_CONTROL):
        same = grid.select(fill=row.fill, kappa=row.kappa, condition=row.condition)
        others = [[r.accuracy for r in same if r.mask == mask] for mask in (CONTROL_ONLY, RANDOM)]
        rows.append(
            [
                f"{row.fill}, κ = {row.kappa:g}",
                row.condition,
                f"{row.nnz:,}",
                interval({"accuracy": row.accuracy, "ci95": row.ci95}),
                p_value(row.p_holm),
                f"{grid.rise(row):+.1%}",
                *(span(values, "{:.3f}") for values in others),
            ]
        )
    before = {row.condition: row.accuracy for row in grid.select(mask=BASELINE)}
    untouched = ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in before.items())
    return Table(
        f"What the task-minus-control masks do with each fill: accuracy with its 95 % interval, p of the {TEST} after "
        f"Holm over all {len(rows)} rows, rise of the perplexity, and the controls. Untouched: {untouched}.",
        ["Fill", "Condition", "Weights", "Accuracy", "p (Holm)", "Perplexity", "Control only", "Random"],
        rows,
        words=(1,),
    )
