"""Records as pictures, beside the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tomfisher.benchmarks.tables import lookup
from tomfisher.files import atomic_path

LINEAR = "linear"
_PER_ROW = 8
_SPREAD = {
    "seconds.median": ("seconds.q20", "seconds.q80"),
    "times_floor.median": ("times_floor.q20", "times_floor.q80"),
}


def bars(
    cases: Sequence[Mapping[str, Any]],
    path: str | Path,
    key: str,
    label: str,
    title: str,
    line: float | None = None,
) -> None:
    """A group of bars per case, one bar per contender, logarithmic, with the 20th to 80th percentile.

    Args:
        cases: of a record's `results["cases"]`.
        path: PNG file.
        key: number to draw, such as "times_floor.median".
        label: of the vertical axis.
        title: of the figure.
        line: where to draw a horizontal line (the floor).
    """
    from matplotlib.patches import Patch

    names = list(dict.fromkeys(name for case in cases for name in case["contenders"]))
    rows = [cases[i : i + _PER_ROW] for i in range(0, len(cases), _PER_ROW)] or [[]]
    figure, axes = _axes(len(rows))
    width = 0.8 / max(1, len(names))
    for axis, group in zip(axes, rows, strict=True):
        for position, name in enumerate(names):
            places, heights, spread = _heights(group, name, key)
            shifted = [place + (position - (len(names) - 1) / 2) * width for place in places]
            axis.bar(
                shifted, heights, width, yerr=spread, label=name, color=f"C{position}", error_kw={"lw": 0.7}
            )
        axis.set_xticks(
            range(len(group)), [case["name"] for case in group], fontsize=7, rotation=12, ha="right"
        )
        axis.set_yscale("log")
        axis.set_ylabel(label)
        if line is not None:
            axis.axhline(line, color="black", linewidth=0.8, linestyle="--")
    axes[0].set_title(title)
    axes[0].legend(
        handles=[Patch(color=f"C{i}", label=name) for i, name in enumerate(names)], fontsize=7, ncols=2
    )
    _write(figure, path)


def curves(panels: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Log-log curves side by side.

    Args:
        panels: `{"title", "x", "y", "series": {name: [(x, y), …]}}`; the series `LINEAR` is drawn as a guide.
        path: PNG file.
        title: of the figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, points in panel["series"].items():
            style = {"color": "gray", "linestyle": "--"} if name == LINEAR else {"marker": "o"}
            axis.plot(*zip(*points, strict=True), label=name, **style)
        axis.set(xscale="log", yscale="log", xlabel=panel["x"], ylabel=panel["y"], title=panel["title"])
        axis.title.set_fontsize(9)
        for side in (axis.xaxis, axis.yaxis):
            side.set_minor_formatter(NullFormatter())
        axis.legend(fontsize=7)
    figure.suptitle(title)
    _write(figure, path)


def _heights(
    group: Sequence[Mapping[str, Any]], name: str, key: str
) -> tuple[list[int], list[float], tuple[list[float], list[float]]]:
    """Of one contender: which cases it ran in, its numbers there, and how far they spread down and up."""
    places, heights, below, above = [], [], [], []
    for place, case in enumerate(group):
        row = case["contenders"].get(name, {})
        height = lookup(row, key)
        if height is None:
            continue
        low, high = (lookup(row, k) for k in _SPREAD[key]) if key in _SPREAD else (height, height)
        places.append(place)
        heights.append(height)
        below.append(max(0.0, height - low))
        above.append(max(0.0, high - height))
    return places, heights, (below, above)


def _axes(rows: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2 * rows), layout="constrained")
    return figure, figure.subplots(rows, 1, squeeze=False)[:, 0]


def _write(figure: Any, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=140, format=Path(path).suffix.lstrip("."))
