"""The same masks with several fills, such as factors below and above 1: one study per fill, one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tomfisher.results.power import ALPHA
from tomfisher.results.results import GRID, Results, corrected
from tomfisher.results.row import BASELINE, CONTROL_ONLY, RANDOM, TASK_CONTROL
from tomfisher.results.tables import Column, Line, accuracy, measured, table, weights
from tomfisher.studies.config import Config, parse_fill
from tomfisher.studies.experiment import Experiment

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


def render(grid: Results) -> str:
    """One line per fill and κ: what the task-control mask does, its corrected p, and the controls."""
    headline = grid.headline
    columns = [
        weights(grid),
        *measured(grid),
        *(Column(f"p: {name}", name, lambda row: row.p_holm, "{:.2g}") for name in grid.tested),
        *(accuracy(f"{mask} {headline}", headline, mask) for mask in (CONTROL_ONLY, RANDOM)),
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
    return table(["fill", "kappa"], columns, lines).text()


def sentences(grid: Results) -> list[str]:
    """What rises and what falls significantly (sign flips over scenes, Holm over the whole grid), in words."""
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


def run_grid(
    settings: Mapping[str, Any], fills: Sequence[str], overwrite: bool = False, progress: bool = True
) -> Results:
    """Run or resume one study per fill, and write the grid.

    Args:
        settings: of `Config`; `fill` is replaced, and `output_path` is the folder of the grid.
        fills: as `Config.fill` takes them; each gets a run folder of its own below the grid's.
        overwrite: delete earlier studies first.
        progress: show bars on a terminal, and say each step.

    Returns:
        The grid, as `gathered` gives it; it is in `grid.json` and `grid.csv` of the folder.

    Raises:
        ValueError: a fill is unknown or given twice, or a setting is unusable; nothing was run.
    """
    if len(set(map(parse_fill, fills))) < len(fills):
        raise ValueError(f"Every fill must be given once, got {', '.join(fills)}.")
    folder = Path(Config.from_dict({**settings, "fill": fills[0]}).output_path)
    configs = {
        fill: Config.from_dict(
            {**settings, "fill": fill, "output_path": str(folder / fill.replace(":", "-"))}
        )
        for fill in fills
    }
    grid = gathered({fill: Experiment(config, overwrite).run(progress) for fill, config in configs.items()})
    grid.save(folder, GRID)
    return grid
