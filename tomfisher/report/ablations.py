"""Accuracy under each intervention of an ablation, beside its controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tomfisher.evaluate.records import ALL
from tomfisher.report.plainly import plainly
from tomfisher.report.style import INK, STATES, axes, legend_above, literal, styled
from tomfisher.results.points import HEADLINE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONG = 34


def headline_of(ablations: Any) -> str:
    """The condition that the ablations are about: "false-belief" where there is one, else "all"."""
    return HEADLINE if HEADLINE in plainly(ablations)["baseline"]["conditions"] else ALL


def interventions(ablations: Any) -> list[dict[str, Any]]:
    """The points that are no controls, in the order of measurement."""
    return [point for point in plainly(ablations)["points"] if not point.get("control")]


def controls(ablations: Any, name: str) -> list[dict[str, Any]]:
    """The controls of one intervention."""
    points = plainly(ablations)["points"]
    return [point for point in points if point.get("control") and point.get("name") == name]


@styled
def plot_interventions(ablations: Any, condition: str | None = None) -> tuple[Figure, Any]:
    """Accuracy under each intervention with its 95 % interval; grey: least to most over its controls.

    Args:
        ablations: `Ablations`, or the content of `ablations.json`.
        condition: None is the headline.

    Returns:
        Figure and axes; one line per intervention, from the top in the order of measurement.

    Raises:
        ValueError: no interventions.
    """
    points = interventions(ablations)
    if not points:
        raise ValueError("There is no intervention to draw. Measure some: tomfisher ablate RUN.")
    condition = condition or headline_of(ablations)
    figure, axis = axes(1.2 + 0.24 * len(points))
    before = plainly(ablations)["baseline"]["conditions"][condition]
    axis.axvspan(*before["ci95"], color=INK, alpha=0.08, linewidth=0)
    axis.axvline(before["accuracy"], color=INK, linewidth=1.2, label="untouched, 95 % interval")
    ranges = [_range(controls(ablations, point["name"]), condition) for point in points]
    known = [(row, *span) for row, span in enumerate(ranges) if span is not None]
    if known:
        rows, lows, highs = zip(*known, strict=True)
        axis.hlines(
            rows, lows, highs, color=STATES["random"].color, alpha=0.45, linewidth=5, label="its controls"
        )
        axis.plot(highs, rows, linestyle="", marker="|", color=STATES["random"].color)
    _intervals(axis, [point["conditions"][condition] for point in points])
    axis.set_yticks(range(len(points)), [literal(_cut(point["name"])) for point in points])
    axis.set(xlim=(-0.03, 1.05), ylim=(len(points) - 0.5, -0.5), xlabel=f"accuracy: {literal(condition)}")
    axis.grid(False, axis="y")
    legend_above(figure, axis)
    return figure, axis


def _range(points: list[dict[str, Any]], condition: str) -> tuple[float, float] | None:
    values = [point["conditions"][condition]["accuracy"] for point in points]
    return (min(values), max(values)) if values else None


def _intervals(axis: Any, scores: list[dict[str, Any]]) -> None:
    values = [score["accuracy"] for score in scores]
    below = [max(0.0, score["accuracy"] - score["ci95"][0]) for score in scores]
    above = [max(0.0, score["ci95"][1] - score["accuracy"]) for score in scores]
    look = STATES["task-control"]
    axis.errorbar(
        values,
        range(len(values)),
        xerr=(below, above),
        color=look.color,
        marker=look.marker,
        linestyle="",
        elinewidth=1.0,
        capsize=2.5,
        label="intervention, 95 % interval",
    )


def _cut(name: str) -> str:
    return name if len(name) <= _LONG else f"{name[: _LONG - 1]}…"
