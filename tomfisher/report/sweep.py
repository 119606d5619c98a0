"""Accuracy and perplexity over κ, with intervals and the random band."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tomfisher.report.style import INK, SOFT, STATES, axes, error_bars, legend_above, literal, styled
from tomfisher.results.results import Results
from tomfisher.results.row import CONTROL_ONLY, RANDOM, TASK_CONTROL, Row
from tomfisher.results.verdict import PERPLEXITY_LIMIT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 3.4
_NEAR = 0.09
_WIDE = 3.0
_MANY = 8
_ASIDE = 0.02  # of the axis, by which random masks stand beside the other ones, so that none hides the other


@styled
def plot_accuracy(results: Results, condition: str | None = None) -> tuple[Figure, Any]:
    """Accuracy over κ: 95 % intervals as bars, the untouched model as a band, random masks least to most.

    Args:
        results: a whole study, or the part measured so far.
        condition: None is the headline ("false-belief", or "all").

    Returns:
        Figure and axes; κ is logarithmic, accuracy in [0, 1].

    Raises:
        ValueError: there is no such condition.
    """
    condition = condition or results.headline
    if condition not in results.conditions:
        raise ValueError(f"There is no condition {condition!r}. Conditions: {', '.join(results.conditions)}.")
    figure, axis = axes(HEIGHT)
    before = results.baseline(condition)
    axis.axhspan(*before.ci95, color=INK, alpha=0.08, linewidth=0)
    axis.axhline(before.accuracy, color=INK, linewidth=1.2, label="untouched, 95 % interval")
    chance = results.provenance.get("evaluation", {}).get("chance", {}).get(condition)
    if chance is not None:
        axis.axhline(chance, color=SOFT, linewidth=1.0, linestyle=(0, (1, 2)), label="chance")
    for mask in (CONTROL_ONLY, TASK_CONTROL):
        if rows := _line(results, mask, condition):
            _with_intervals(axis, rows, mask)
    _random_band(axis, results, condition, lambda row: row.accuracy)
    _kappa_axis(axis, results.kappas)
    axis.set(ylim=(-0.03, 1.05), ylabel=f"accuracy: {literal(condition)}")
    legend_above(figure, axis)
    return figure, axis


@styled
def plot_perplexity(results: Results) -> tuple[Figure, Any]:
    """Perplexity per token over κ, and the most that the verdict allows (5 % above the untouched model).

    Args:
        results: a whole study, or the part measured so far.

    Returns:
        Figure and axes; κ is logarithmic, perplexity too where it more than trebles.
    """
    figure, axis = axes(HEIGHT)
    before = _perplexity(results.baseline())
    axis.axhline(before, color=INK, linewidth=1.2, label="untouched")
    limit = before * (1 + PERPLEXITY_LIMIT)
    axis.axhline(
        limit, color=SOFT, linewidth=1.0, linestyle=(0, (1, 2)), label=f"{PERPLEXITY_LIMIT:+.0%}: the limit"
    )
    for mask in (CONTROL_ONLY, TASK_CONTROL):
        if rows := _line(results, mask, results.headline):
            look = STATES[mask]
            axis.plot(
                [row.kappa for row in rows],
                [row.perplexity for row in rows],
                color=look.color,
                marker=look.marker,
                linestyle=look.dashes,
                label=look.label,
            )
    _random_band(axis, results, results.headline, _perplexity)
    _kappa_axis(axis, results.kappas)
    axis.set_ylabel("perplexity per token")
    values = [before, limit, *map(_perplexity, results.rows)]
    if max(values) > _WIDE * min(values):
        axis.set_yscale("log")
        _plain_ticks(axis.yaxis)
    legend_above(figure, axis)
    return figure, axis


def _perplexity(row: Row) -> float:
    assert row.perplexity is not None
    return row.perplexity


def _line(results: Results, mask: str, condition: str) -> list[Row]:
    return [row for kappa in results.kappas for row in results.at(kappa, mask, condition)]


def _with_intervals(axis: Any, rows: Sequence[Row], mask: str) -> None:
    look = STATES[mask]
    axis.errorbar(
        [row.kappa for row in rows],
        [row.accuracy for row in rows],
        yerr=error_bars(rows),
        color=look.color,
        marker=look.marker,
        linestyle=look.dashes,
        elinewidth=1.0,
        capsize=2.5,
        label=look.label,
    )


def _random_band(axis: Any, results: Results, condition: str, value: Callable[[Row], float]) -> None:
    """Least to most over the random masks of each κ: a bar beside each, on top, and a band between neighbours."""
    kappas = [kappa for kappa in results.kappas if results.at(kappa, RANDOM)]
    if not kappas:
        return
    values = [[value(row) for row in results.at(kappa, RANDOM, condition)] for kappa in kappas]
    lows, highs = [min(v) for v in values], [max(v) for v in values]
    look, count = STATES[RANDOM], max(map(len, values))
    if len(kappas) > 1:
        axis.fill_between(kappas, lows, highs, color=look.color, alpha=0.3, linewidth=0)
    places = [kappa * math.exp(_ASIDE * _span(results.kappas)) for kappa in kappas]
    axis.vlines(places, lows, highs, color=look.color, linewidth=4, alpha=0.45, zorder=3)
    axis.plot(
        places,
        [sum(v) / len(v) for v in values],
        color=look.color,
        marker=look.marker,
        linestyle=look.dashes,
        label=f"{look.label} ×{count}, least to most",
        zorder=3,
    )


def _span(kappas: Sequence[float]) -> float:
    """Length of the axis in natural logarithms."""
    return math.log(kappas[-1] / kappas[0]) or math.log(4)


def _kappa_axis(axis: Any, kappas: Sequence[float]) -> None:
    """Logarithmic, with the measured κ as ticks where they are few and far enough from each other."""
    axis.set_xlabel("κ, share of each matrix")
    if not kappas:
        axis.set_xticks([])
        return
    axis.set_xscale("log")
    low, high = kappas[0], kappas[-1]
    span = _span(kappas)
    axis.set_xlim(low / math.exp(0.06 * span), high * math.exp(0.06 * span))
    if len(kappas) <= _MANY:
        shown = [low]
        for kappa in kappas[1:]:
            if math.log(kappa / shown[-1]) > _NEAR * span:
                shown.append(kappa)
        axis.set_xticks(shown, [f"{kappa:g}" for kappa in shown])
        axis.set_xticks([], minor=True)


def _plain_ticks(axis: Any) -> None:
    """Numbers as they are written in tables instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
