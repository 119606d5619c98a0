"""How large the Fisher values are: a histogram over powers of two, and what each κ selects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tomfisher.report.style import STATES, axes, legend_above, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {"task": STATES["task-control"], "control": STATES["control-only"]}
_SHIFT = {"task": -0.16, "control": 0.16}


def histogram(fisher: Mapping[str, Any]) -> tuple[int, np.ndarray]:
    """Entries of all tensors per power of two.

    Args:
        fisher: "task" or "control" of `fisher-values.json`.

    Returns:
        The exponent e of the first bin, `[2**e, 2**(e + 1))`, and int64 counts; none where no entry is positive.
    """
    parts = [tensor["histogram"] for tensor in fisher["tensors"].values() if tensor["histogram"]["counts"]]
    if not parts:
        return 0, np.zeros(0, dtype=np.int64)
    first = min(part["first"] for part in parts)
    last = max(part["first"] + len(part["counts"]) for part in parts)
    total = np.zeros(last - first, dtype=np.int64)
    for part in parts:
        start = part["first"] - first
        total[start : start + len(part["counts"])] += np.array(part["counts"], dtype=np.int64)
    return first, total


def entries(fisher: Mapping[str, Any], kind: str = "numel") -> int:
    """How many entries there are in all tensors, or are "zeros", "negative" or "subnormal"."""
    return sum(tensor[kind] for tensor in fisher["tensors"].values())


@styled
def plot_fisher_values(values: Mapping[str, Any]) -> tuple[Figure, Any]:
    """Numbers of Fisher values per power of two, task and control, and below the smallest value each κ selects.

    Args:
        values: the content of `fisher-values.json`.

    Returns:
        Figure and two axes: entries per power of two (both axes logarithmic; zeros have no place there), and for each
        κ the range over the tensors of the smallest value selected, its median marked.

    Raises:
        ValueError: no value is positive.
    """
    drawn = {which: histogram(values[which]) for which in LOOKS}
    if not any(len(counts) for _, counts in drawn.values()):
        raise ValueError("No Fisher value is positive, so there is no histogram over powers of two to draw.")
    kappas = [threshold["kappa"] for threshold in values["task"]["thresholds"]]
    figure, (above, below) = axes(
        2.9 + 0.22 * len(kappas), 2, sharex=True, height_ratios=(2.2, 0.4 + 0.22 * len(kappas))
    )
    for which, look in LOOKS.items():
        first, counts = drawn[which]
        if len(counts):
            edges = np.ldexp(1.0, np.arange(first, first + len(counts) + 1))
            above.stairs(counts, edges, color=look.color, linestyle=look.dashes, linewidth=1.6, label=which)
        _mark(below, values[which]["thresholds"], which)
    above.set(xscale="log", yscale="log", ylabel="weights per power of two")
    above.set_ylim(bottom=0.7)
    for axis in (above.yaxis, below.xaxis):
        _plain_powers(axis)
    below.set_yticks(range(len(kappas)), [f"{kappa:g}" for kappa in kappas])
    below.set(ylim=(len(kappas) - 0.5, -0.5), ylabel="κ", xlabel="Fisher value, sum over the samples")
    below.grid(False, axis="y")
    legend_above(figure, above)
    return figure, np.array([above, below])


def _plain_powers(axis: Any) -> None:
    """1e-6 instead of a power whose exponent is too small to read."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    def written(value: float, _: int) -> str:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")

    axis.set_major_formatter(FuncFormatter(written))
    axis.set_minor_formatter(NullFormatter())


def _mark(axis: Any, thresholds: list[Mapping[str, Any]], which: str) -> None:
    """The smallest value that each κ selects: least to most over the tensors as a line, the median as a mark."""
    look = LOOKS[which]
    known = [
        (row + _SHIFT[which], threshold)
        for row, threshold in enumerate(thresholds)
        if threshold["median"] is not None and threshold["median"] > 0
    ]
    rows = [row for row, _ in known]
    least, median, most = ([t[name] for _, t in known] for name in ("least", "median", "most"))
    tiny = [value if value > 0 else middle for value, middle in zip(least, median, strict=True)]
    axis.hlines(rows, tiny, most, color=look.color, linewidth=1.6)
    axis.plot(median, rows, color=look.color, marker=look.marker, linestyle="none")
