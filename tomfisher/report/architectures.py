"""The same study on several architectures: one figure at equal κ, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tomfisher.report.style import INK, STATES, axes, error_bars, legend_above, literal, styled
from tomfisher.report.tables import span
from tomfisher.results.architecture_folder import Architectures
from tomfisher.results.architectures import FAMILIES, Outcome
from tomfisher.results.columns import COUNT, WEIGHTS, mask_columns, masks_at, on_text
from tomfisher.results.equal_kappa import common_kappas
from tomfisher.results.row import BASELINE, CONTROL_ONLY, HEADLINE, RANDOM, TASK_CONTROL, Row
from tomfisher.results.tables import PAGE, Table, stacked, table
from tomfisher.results.verdict import headline_tests

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OFFSETS = {"before": -0.27, "after": -0.09, CONTROL_ONLY: 0.09, RANDOM: 0.27}
_LOOKS = {"after": STATES[TASK_CONTROL], CONTROL_ONLY: STATES[CONTROL_ONLY], RANDOM: STATES[RANDOM]}


@styled
def plot_architectures(architectures: Architectures | Sequence[Outcome]) -> tuple[Figure, Any]:
    """False-belief accuracy before and after, an architecture beside the other, one panel per κ that all have.

    Bars are 95 % intervals; random masks are drawn from the least to the most accurate.

    Args:
        architectures: `tomfisher.results.architecture_folder.read(folder)`, or the outcomes in it.

    Returns:
        Figure and the axes, from the smallest κ at the top to the largest.

    Raises:
        ValueError: there are no outcomes, or no κ is common to all.
    """
    outcomes = outcomes_of(architectures)
    kappas = common_kappas(outcomes)
    if not kappas:
        raise ValueError(
            f"The {len(outcomes)} studies have no kappa in common and cannot be compared. Run them "
            "with the same --kappas: tomfisher run --preset architectures."
        )
    figure, panels = axes(0.9 + 1.35 * len(kappas), len(kappas), 1, squeeze=False, sharex=True)
    panels = panels[:, 0]
    for axis, kappa in zip(panels, kappas, strict=True):
        _with_intervals(axis, "before", [outcome.before() for outcome in outcomes])
        _with_intervals(axis, "after", [outcome.after(kappa=kappa) for outcome in outcomes])
        _with_intervals(axis, CONTROL_ONLY, [outcome.control(kappa=kappa) for outcome in outcomes])
        _ranges(axis, [outcome.randoms(kappa=kappa) for outcome in outcomes])
        axis.set(ylim=(-0.05, 1.08), title=f"κ = {kappa:g}")
        axis.grid(False, axis="x")
    panels[-1].set_xticks(range(len(outcomes)), [literal(outcome.title) for outcome in outcomes])
    figure.supylabel(f"accuracy: {literal(outcomes[0].results.headline)}", fontsize=10)
    legend_above(figure, panels[0])
    return figure, panels


def _with_intervals(axis: Any, state: str, rows: Sequence[Row]) -> None:
    look = _LOOKS.get(state)
    axis.errorbar(
        [i + _OFFSETS[state] for i in range(len(rows))],
        [row.accuracy for row in rows],
        yerr=error_bars(rows),
        color=INK if look is None else look.color,
        marker="D" if look is None else look.marker,
        linestyle="",
        elinewidth=1.0,
        capsize=2.0,
        label="untouched" if look is None else look.label,
    )


def _ranges(axis: Any, randoms: Sequence[Sequence[Row]]) -> None:
    """Least to most over the random masks, their mean marked."""
    look = STATES[RANDOM]
    known = [(i + _OFFSETS[RANDOM], [row.accuracy for row in rows]) for i, rows in enumerate(randoms) if rows]
    if known:
        places = [place for place, _ in known]
        lows, highs = ([pick(values) for _, values in known] for pick in (min, max))
        axis.vlines(places, lows, highs, color=look.color, linewidth=4, alpha=0.45)
        means = [sum(values) / len(values) for _, values in known]
        label = f"{look.label}, least to most"
        axis.plot(places, means, color=look.color, marker=look.marker, linestyle="", label=label)


def outcomes_of(architectures: Architectures | Sequence[Outcome]) -> tuple[Outcome, ...]:
    """The outcomes of a folder of architectures, or those that are given."""
    return architectures.outcomes if isinstance(architectures, Architectures) else tuple(architectures)


def says(architectures: Architectures | Sequence[Outcome]) -> str:
    """The figure in numbers."""
    words = []
    outcomes = outcomes_of(architectures)
    for kappa in common_kappas(outcomes):
        parts = []
        for outcome in outcomes:
            randoms = span([row.accuracy for row in outcome.randoms(kappa=kappa)], "{:.3f}")
            parts.append(
                f"{outcome.title} {outcome.before().accuracy:.3f} untouched, "
                f"{outcome.after(kappa=kappa).accuracy:.3f} task minus control, "
                f"{outcome.control(kappa=kappa).accuracy:.3f} control only, {randoms} random"
            )
        words.append(f"At {kappa:g}: {'; '.join(parts)}.")
    return " ".join(words)


def equal_kappa_table(architectures: Architectures | Sequence[Outcome]) -> Table | None:
    """One row per κ and architecture; None where no κ is common to all."""
    outcomes = outcomes_of(architectures)
    caption = (
        "Every architecture at every κ that all have: false-belief accuracy with 95 % intervals (random masks: least "
        "to most), and the rise of the perplexity under each mask. p against the untouched model, after Holm over the "
        "κ of that architecture."
    )
    parts = []
    for kappa in common_kappas(outcomes):
        for outcome in outcomes:
            line = masks_at(outcome.results, kappa, [f"κ = {kappa:g}: {outcome.title}"])
            columns = [
                WEIGHTS,
                *mask_columns(headline_tests(outcome.results)),
                *on_text(outcome.results, "perplexity"),
                *on_text(outcome.results, "perplexity, control only", CONTROL_ONLY),
                *on_text(outcome.results, "perplexity, random", RANDOM),
            ]
            parts.append(table(["κ and architecture"], columns, [line], PAGE, caption))
    return stacked(parts) if parts else None


def architecture_table(architectures: Architectures | Sequence[Outcome]) -> Table:
    """One row per architecture, each at its own κ."""
    labels = ["architecture", "positions", "effect", "κ"]
    caption = (
        "Each architecture at its own κ, the one where its accuracy falls most: these rows are not at one κ and so not "
        "comparable with each other. False-belief accuracy with 95 % intervals, random masks from least to most."
    )
    parts = []
    for outcome in outcomes_of(architectures):
        found = "found" if outcome.found else "not found"
        own = [outcome.title, outcome.positions, found, f"{outcome.kappa:g}"]
        columns = [*mask_columns(headline_tests(outcome.results)), *on_text(outcome.results, "perplexity")]
        line = masks_at(outcome.results, outcome.kappa, own)
        parts.append(table(labels, columns, [line], PAGE, caption, words=(0, 1, 2)))
    return stacked(parts)


def family_table(architectures: Architectures | Sequence[Outcome]) -> Table | None:
    """One row per architecture and family of stories, at the architecture's own κ; None where no family is known."""
    lines = [
        masks_at(outcome.results, outcome.kappa, [f"{outcome.title}: {family}", f"{outcome.kappa:g}"], name)
        for outcome in outcomes_of(architectures)
        for family, name in ((family, f"{family}/{HEADLINE}") for family in FAMILIES)
        if name in outcome.conditions
    ]
    if not lines:
        return None
    return table(
        ["architecture and family", "κ"],
        [COUNT._replace(beside=BASELINE), *mask_columns()],
        lines,
        PAGE,
        "False belief in each family of stories, at the architecture's own κ, with 95 % intervals.",
        title="Families of stories",
    )
