"""Accuracy under each intervention of an ablation, beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tomfisher.report.style import INK, STATES, axes, error_bars, legend_above, literal, styled
from tomfisher.results.ablations import controls, interventions
from tomfisher.results.results import Results
from tomfisher.results.row import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONG = 34


@styled
def plot_interventions(ablations: Results, condition: str | None = None) -> tuple[Figure, Any]:
    """Accuracy under each intervention with its 95 % interval; grey: least to most over its controls.

    Args:
        ablations: what `tomfisher.studies.ablation.ablate` gives, or `Results.load(run, "ablations")`.
        condition: None is the headline.

    Returns:
        Figure and axes; one line per intervention, from the top in the order of measurement.

    Raises:
        ValueError: no interventions.
    """
    rows = interventions(ablations, condition)
    if not rows:
        raise ValueError("There is no intervention to draw. Measure some: tomfisher ablate RUN.")
    figure, axis = axes(1.2 + 0.24 * len(rows))
    before = ablations.baseline(condition)
    axis.axvspan(*before.ci95, color=INK, alpha=0.08, linewidth=0)
    axis.axvline(before.accuracy, color=INK, linewidth=1.2, label="untouched, 95 % interval")
    beside = {place: [c.accuracy for c in controls(ablations, row)] for place, row in enumerate(rows)}
    known = [(place, min(values), max(values)) for place, values in beside.items() if values]
    if known:
        places, lows, highs = zip(*known, strict=True)
        axis.hlines(
            places, lows, highs, color=STATES["random"].color, alpha=0.45, linewidth=5, label="its controls"
        )
        axis.plot(highs, places, linestyle="", marker="|", color=STATES["random"].color)
    _intervals(axis, rows)
    axis.set_yticks(range(len(rows)), [literal(_cut(str(row.state))) for row in rows])
    axis.set(
        xlim=(-0.03, 1.05), ylim=(len(rows) - 0.5, -0.5), xlabel=f"accuracy: {literal(before.condition)}"
    )
    axis.grid(False, axis="y")
    legend_above(figure, axis)
    return figure, axis


def _intervals(axis: Any, rows: Sequence[Row]) -> None:
    look = STATES["task-control"]
    axis.errorbar(
        [row.accuracy for row in rows],
        range(len(rows)),
        xerr=error_bars(rows),
        color=look.color,
        marker=look.marker,
        linestyle="",
        elinewidth=1.0,
        capsize=2.5,
        label="intervention, 95 % interval",
    )


def _cut(name: str) -> str:
    return name if len(name) <= _LONG else f"{name[: _LONG - 1]}…"
