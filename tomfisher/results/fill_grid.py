"""The same masks with several fills as one table: what rises, and what falls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tomfisher.evaluate.statistics import TEST
from tomfisher.results.columns import WEIGHTS, answers, interval, measured, p_value
from tomfisher.results.power import ALPHA
from tomfisher.results.results import Results, corrected
from tomfisher.results.row import BASELINE, CONTROL_ONLY, RANDOM, TASK_CONTROL
from tomfisher.results.tables import TEXT, Column, Line, Style, Table, table

KEPT = ("command", "config", "model", "data", "fisher")  # of the provenance of the first study


def gathered(studies: Mapping[str, Results]) -> Results:
    """The studies' rows on the headline condition and all questions.

    Args:
        studies: fill to study.

    Returns:
        Rows with their fill; `p_holm` of the task-control masks is corrected over all of them.
    """
    first = next(iter(studies.values()))
    rows = [
        replace(row, fill=fill)
        for fill, study in studies.items()
        for row in study.rows
        if row.condition in first.tested
    ]
    p = corrected(row for row in rows if row.mask == TASK_CONTROL)
    origin = {key: first.provenance[key] for key in KEPT if key in first.provenance}
    grid = Results(tuple(replace(row, p_holm=p.get(row)) for row in rows), origin)
    return replace(grid, conclusions=tuple(sentences(grid)))


def grid_table(grid: Results, style: Style = TEXT) -> Table:
    """One line per fill and κ: what the task-control mask does, its corrected p, and the controls."""
    headline = grid.headline
    p = [Column(f"p: {name}", lambda row: row.p_holm, p_value, name) for name in grid.tested]
    columns = [
        WEIGHTS,
        *measured(grid, [interval(headline), *p]),
        *answers(f"{CONTROL_ONLY} {headline}", headline, CONTROL_ONLY),
        *answers(f"{RANDOM} {headline}", headline, RANDOM),
    ]
    first = grid.rows[0].fill
    lines = [Line(["none", "0"], grid.select(mask=BASELINE, fill=first))]
    for fill in dict.fromkeys(row.fill for row in grid.rows):
        for kappa in grid.kappas:
            own, *controls = (
                grid.select(fill=fill, kappa=kappa, mask=mask)
                for mask in (TASK_CONTROL, CONTROL_ONLY, RANDOM)
            )
            beside = dict(zip((CONTROL_ONLY, RANDOM), controls, strict=True))
            lines += [Line([str(fill), f"{kappa:g}"], own, beside)] if own else []
    caption = (
        f"What the task-minus-control masks do with each fill: accuracy with its 95 % interval, p of the {TEST} after "
        f"Holm over all {sum(row.p_holm is not None for row in grid.rows)} tests, perplexity, and the controls."
    )
    return table(["fill", style.kappa], columns, lines, style, caption)


def sentences(grid: Results) -> list[str]:
    """What rises and what falls significantly (sign flips over clusters, Holm over the whole grid), in words."""
    tests = [row for row in grid.rows if row.p_holm is not None]
    moved: dict[str, list[str]] = {"rises": [], "falls": []}
    for row in tests:
        before = grid.baseline(row.condition).accuracy
        assert row.p_holm is not None
        if row.p_holm < ALPHA and row.accuracy != before:
            change = f"({before:.3f} to {row.accuracy:.3f}, p = {row.p_holm:.2g})"
            words = f"{row.condition} at {row.fill}, kappa {row.kappa:g} {change}"
            moved["rises" if row.accuracy > before else "falls"].append(words)
    said = [
        f"{len(tests)} tests, corrected together (Holm). "
        + (f"What {verb}: {'; '.join(changes)}." if changes else f"Nothing {verb} significantly.")
        for verb, changes in moved.items()
    ]
    full = [name for name in grid.tested if grid.baseline(name).accuracy == 1.0]
    return said + [f"The untouched model has {name} accuracy 1.000: it cannot rise." for name in full]
