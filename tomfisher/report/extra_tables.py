"""Tables of what was done with a run after it: ablations, training, other fills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tomfisher.evaluate.records import ALL
from tomfisher.evaluate.scenes import TEST
from tomfisher.experiment.results import BASELINE, CONTROL_ONLY, HEADLINE, RANDOM, TASK_CONTROL
from tomfisher.experiment.verdict import holm
from tomfisher.report.ablations import controls, headline_of, interventions
from tomfisher.report.tables import ABSENT, Table, interval, number, p_value, span


def ablation_table(ablations: Mapping[str, Any]) -> Table:
    """One row per intervention, the range over its controls behind it."""
    name = headline_of(ablations)
    baseline, points = ablations["baseline"], interventions(ablations)
    corrected = holm([float(point["conditions"][name]["p_vs_baseline"]) for point in points])
    rows = [
        [
            "none (untouched)",
            "0",
            interval(baseline["conditions"][name]),
            ABSENT,
            *_cost(baseline, baseline),
            ABSENT,
        ]
    ]
    for point, p in zip(points, corrected, strict=True):
        beside_it = [c["conditions"][name]["accuracy"] for c in controls(ablations, point["name"])]
        rows.append(
            [
                point["name"],
                f"{point['nnz']:,}",
                interval(point["conditions"][name]),
                p_value(p),
                *_cost(point, baseline),
                span(beside_it, "{:.3f}"),
            ]
        )
    return Table(
        f"Interventions: accuracy on {name} with its 95 % interval, p of the {TEST} after Holm over all {len(points)} "
        "interventions, perplexity, and the accuracy of their controls, least to most.",
        ["Intervention", "Weights", f"Accuracy: {name}", "p (Holm)", "Perplexity", "Rise", "Controls"],
        rows,
    )


def _cost(point: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    change = point["perplexity"] / baseline["perplexity"] - 1
    return [f"{point['perplexity']:.4g}", ABSENT if point is baseline else f"{change:+.1%}"]


def finetune_table(found: Mapping[str, Any]) -> Table:
    """One row per state of a comparison of trainings."""
    states = found["states"]
    name = HEADLINE if HEADLINE in states[0]["conditions"] else ALL
    trained = [state for state in states if state["conditions"][name]["p_vs_start"] is not None]
    known = holm([state["conditions"][name]["p_vs_start"] for state in trained])
    corrected = {id(state): p for state, p in zip(trained, known, strict=True)}
    rows = [
        [
            state["name"] if state["seed"] is None else f"{state['name']} (seed {state['seed']})",
            f"{state['trainable']:,}",
            number(state["learning_rate"], "{:g}"),
            interval(state["conditions"][name]),
            p_value(corrected.get(id(state))),
            f"{state['conditions'][ALL]['accuracy']:.3f}",
            *_cost(state, states[0]),
        ]
        for state in states
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


def grid_table(grid: Mapping[str, Any]) -> Table:
    """One row per fill, κ and condition of the task's masks, the controls behind it."""
    known = grid["rows"]
    rows = []
    for row in known:
        if row["mask"] == TASK_CONTROL:
            same = [r for r in known if all(r[key] == row[key] for key in ("fill", "kappa", "condition"))]
            others = [[r["accuracy"] for r in same if r["mask"] == mask] for mask in (CONTROL_ONLY, RANDOM)]
            score = {"accuracy": row["accuracy"], "ci95": (row["ci95_low"], row["ci95_high"])}
            rows.append(
                [
                    f"{row['fill']}, κ = {row['kappa']:g}",
                    row["condition"],
                    f"{row['nnz']:,}",
                    interval(score),
                    p_value(row["p_holm"]),
                    f"{row['rise']:+.1%}",
                    *(span(values, "{:.3f}") for values in others),
                ]
            )
    before = {row["condition"]: row["accuracy"] for row in known if row["mask"] == BASELINE}
    untouched = ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in before.items())
    return Table(
        f"What the task-minus-control masks do with each fill: accuracy with its 95 % interval, p of the {TEST} after "
        f"Holm over all {len(rows)} rows, rise of the perplexity, and the controls. Untouched: {untouched}.",
        ["Fill", "Condition", "Weights", "Accuracy", "p (Holm)", "Perplexity", "Control only", "Random"],
        rows,
        words=(1,),
    )
