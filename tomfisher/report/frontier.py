"""The specificity frontier: how far the ability falls against how far the perplexity rises, mask by mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tomfisher.masks import criteria
from tomfisher.report.style import INK, SOFT, STATES, TONES, Look, axes, legend_above, literal, styled
from tomfisher.results.results import Results
from tomfisher.results.row import CONTROL_ONLY, RANDOM, TASK_CONTROL, Row
from tomfisher.results.rule import PAPER, Rule
from tomfisher.results.verdict import PERPLEXITY_LIMIT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 4.2
LINEAR = 0.02  # of the perplexity's rise: the axis is linear up to here, logarithmic beyond
_MARKERS = ("D", "v", "P", "X", "<", ">", "h", "*")
_DASHES = ("--", "-.", ":")


@styled
def plot_frontier(results: Results, condition: str | None = None) -> tuple[Figure, Any]:
    """Fall of the accuracy over the rise of the perplexity: a line per rule, along κ, with 95 % intervals.

    Up and to the left is better: ability lost, language kept. Bars are the intervals of the accuracy under the mask.
    The dotted line is the most perplexity that the verdict allows; random masks of all rules are dots.

    Args:
        results: a whole study, or the part measured so far.
        condition: None is the headline ("false-belief", or "all").

    Returns:
        Figure and axes; the rise is a fraction (0.05 is 5 %), linear up to 2 % and logarithmic beyond.

    Raises:
        ValueError: there is no such condition.
    """
    condition = condition or results.headline
    if condition not in results.conditions:
        raise ValueError(f"There is no condition {condition!r}. Conditions: {', '.join(results.conditions)}.")
    figure, axis = axes(HEIGHT)
    before = results.baseline(condition).accuracy
    axis.axhline(0.0, color=INK, linewidth=1.0)
    axis.axvline(
        PERPLEXITY_LIMIT,
        color=SOFT,
        linewidth=1.0,
        linestyle=(0, (1, 2)),
        label=f"{PERPLEXITY_LIMIT:+.0%}: the limit",
    )
    randoms = results.select(mask=RANDOM, condition=condition)
    if randoms:
        look = STATES[RANDOM]
        axis.plot(
            [results.rise(row) for row in randoms],
            [before - row.accuracy for row in randoms],
            color=look.color,
            marker=look.marker,
            linestyle="",
            alpha=0.6,
            label=f"{look.label}, {len(randoms)} masks",
        )
    if rows := _along_kappa(results, CONTROL_ONLY, condition, PAPER):
        _line(axis, results, rows, before, STATES[CONTROL_ONLY])
    for rule, look in looks(results.rules).items():
        _line(axis, results, _along_kappa(results, TASK_CONTROL, condition, rule), before, look)
    axis.set_xscale("symlog", linthresh=LINEAR)
    _percent(axis.xaxis)
    axis.set(xlabel="rise of the perplexity", ylabel=f"fall of the accuracy: {literal(condition)}")
    legend_above(figure, axis)
    return figure, axis


def looks(rules: Sequence[Rule]) -> dict[Rule, Look]:
    """How each rule is drawn: the paper's as everywhere, the others told apart by marker and dashes."""
    drawn = {}
    others = [rule for rule in rules if rule != PAPER]
    for rule in rules:
        if rule == PAPER:
            drawn[rule] = STATES[TASK_CONTROL]._replace(label=f"{criteria.FISHER}, control κ = κ")
            continue
        place = others.index(rule)
        color = TONES["task" if rule.criterion is None else "other"].light
        name = rule.criterion or criteria.FISHER
        control = "" if rule.control_kappa is None else f", control {rule.control_kappa:g}"
        drawn[rule] = Look(
            name + control, color, _MARKERS[place % len(_MARKERS)], _DASHES[place % len(_DASHES)]
        )
    return drawn


def _along_kappa(results: Results, mask: str, condition: str, rule: Rule) -> list[Row]:
    return [row for kappa in results.kappas for row in results.at(kappa, mask, condition, rule)]


def _line(axis: Any, results: Results, rows: Sequence[Row], before: float, look: Look) -> None:
    below = [max(0.0, row.ci95_high - row.accuracy) for row in rows]
    above = [max(0.0, row.accuracy - row.ci95_low) for row in rows]
    axis.errorbar(
        [results.rise(row) for row in rows],
        [before - row.accuracy for row in rows],
        yerr=(below, above),
        color=look.color,
        marker=look.marker,
        linestyle=look.dashes,
        elinewidth=0.8,
        capsize=2.0,
        label=look.label,
    )


def _percent(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.0%}" if value else "0"))
    axis.set_minor_formatter(NullFormatter())
