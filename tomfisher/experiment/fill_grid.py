"""The same masks with several fills, such as factors below and above 1: one study per fill, one table."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomfisher.evaluate.records import ALL
from tomfisher.experiment.config import Config, parse_fill
from tomfisher.experiment.results import CONTROL_ONLY, RANDOM, TASK_CONTROL, Point, Results
from tomfisher.experiment.study import Experiment
from tomfisher.experiment.table import align, rise
from tomfisher.experiment.verdict import ALPHA, holm

CSV_COLUMNS = ["fill", "kappa", "mask", "seed", "nnz", "condition", "n", "accuracy", "ci95_low", "ci95_high"]
CSV_COLUMNS += ["p_vs_baseline", "p_holm", "perplexity", "rise"]


@dataclass(frozen=True)
class FillGrid:
    """One study per fill, of the same masks and questions.

    Args:
        results: fill to study, in the order asked for.
        folder: where the grid is written; each study has a folder below it.
    """

    results: dict[str, Results]
    folder: Path

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions that are tested: the headline condition and all questions."""
        headline = next(iter(self.results.values())).baseline.headline()
        return (headline,) if headline == ALL else (headline, ALL)

    def corrected(self) -> dict[tuple[str, float, str], float]:
        """Holm's p of every fill, κ and tested condition of the task-control masks, all in one family."""
        keys, ps = [], []
        for fill, results in self.results.items():
            for kappa in results.kappas:
                for point in results.at(kappa, TASK_CONTROL):
                    for condition in self.conditions:
                        keys.append((fill, kappa, condition))
                        ps.append(point.conditions[condition]["p_vs_baseline"])
        return dict(zip(keys, holm(ps), strict=True))

    def render(self) -> str:
        """One line per fill and κ: accuracy with the task-control mask, its corrected p, and the controls."""
        names = self.conditions
        header = ["fill", "kappa", "weights", *(f"{name}{tail}" for name in names for tail in ("", ", p"))]
        header += ["perplexity", f"control-only {names[0]}", f"random {names[0]}"]
        first = next(iter(self.results.values())).baseline
        base = [text for name in names for text in (f"{first.accuracy(name):.3f}", "")]
        rows = [["none", "0", "0", *base, f"{first.perplexity:.4g}", "", ""]]
        corrected = self.corrected()
        for fill, results in self.results.items():
            for kappa in results.kappas:
                rows += [
                    self._row(fill, point, results, corrected) for point in results.at(kappa, TASK_CONTROL)
                ]
        return align(header, rows, left=(0,))

    def _row(
        self, fill: str, point: Point, results: Results, corrected: Mapping[tuple[str, float, str], float]
    ) -> list[str]:
        measured = [
            text
            for name in self.conditions
            for text in (f"{point.accuracy(name):.3f}", f"{corrected[fill, point.kappa, name]:.2g}")
        ]
        controls = [
            _span(results.at(point.kappa, mask), self.conditions[0]) for mask in (CONTROL_ONLY, RANDOM)
        ]
        cost = round(rise(results, point), 3) + 0.0
        return [fill, f"{point.kappa:g}", str(point.nnz), *measured, f"{cost:+.1%}", *controls]

    def sentences(self) -> list[str]:
        """What rises and what falls significantly (sign flips over scenes, Holm over the whole grid), in words."""
        moved: dict[str, list[str]] = {"rises": [], "falls": []}
        for (fill, kappa, condition), p in self.corrected().items():
            results = self.results[fill]
            before = results.baseline.accuracy(condition)
            after = results.at(kappa, TASK_CONTROL)[0].accuracy(condition)
            if p < ALPHA and after != before:
                words = f"{condition} at {fill}, kappa {kappa:g} ({before:.3f} to {after:.3f}, p = {p:.2g})"
                moved["rises" if after > before else "falls"].append(words)
        first = next(iter(self.results.values())).baseline
        said = [
            f"{len(self.corrected())} tests, corrected together (Holm). Nothing {verb} significantly."
            if not found
            else f"{len(self.corrected())} tests, corrected together (Holm). What {verb}: {'; '.join(found)}."
            for verb, found in moved.items()
        ]
        full = [name for name in self.conditions if first.accuracy(name) == 1.0]
        return said + [f"The untouched model has {name} accuracy 1.000: it cannot rise." for name in full]

    def save(self) -> None:
        """Write `grid.json` and `grid.csv`, one row per fill, point and tested condition."""
        from tomfisher.files import atomic_path

        rows = self.rows()
        with atomic_path(self.folder / "grid.json") as temporary:
            origin = next(iter(self.results.values())).provenance
            kept = {
                key: origin[key] for key in ("command", "config", "model", "data", "fisher") if key in origin
            }
            content = {"rows": rows, "conclusions": self.sentences(), "provenance": kept}
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        with (
            atomic_path(self.folder / "grid.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as handle,
        ):
            writer = csv.DictWriter(handle, CSV_COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def rows(self) -> list[dict[str, Any]]:
        """The whole grid, controls included, as flat rows; `p_holm` is of the task-control masks only."""
        corrected = self.corrected()
        found = []
        for fill, results in self.results.items():
            for point in (results.baseline, *results.points):
                for condition in self.conditions:
                    score = point.conditions[condition]
                    key = (fill, point.kappa, condition)
                    low, high = score["ci95"]
                    values = [fill, point.kappa, point.mask, point.seed, point.nnz, condition, score["n"]]
                    values += [score["accuracy"], low, high, score["p_vs_baseline"]]
                    values += [corrected[key] if point.mask == TASK_CONTROL else None]
                    values += [point.perplexity, rise(results, point)]
                    found.append(dict(zip(CSV_COLUMNS, values, strict=True)))
        return found


def run_grid(
    settings: Mapping[str, Any], fills: Sequence[str], overwrite: bool = False, progress: bool = True
) -> FillGrid:
    """Run or resume one study per fill, and write the grid.

    Args:
        settings: of `Config`; `fill` is replaced, and `output_path` is the folder of the grid.
        fills: as `Config.fill` takes them; each gets a run folder of its own below the grid's.
        overwrite: delete earlier studies first.
        progress: show bars on a terminal, and say each step.

    Returns:
        The grid.

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
    results = {fill: Experiment(config, overwrite).run(progress) for fill, config in configs.items()}
    grid = FillGrid(results, folder)
    grid.save()
    return grid


def _span(points: Sequence[Point], condition: str) -> str:
    if not points:
        return ""
    values = [point.accuracy(condition) for point in points]
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low}..{high}"
