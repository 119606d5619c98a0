"""What an ablation found: points with names, the corrected tests, the files and the table."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tomfisher.evaluate.records import ALL
from tomfisher.evaluate.statistics import holm
from tomfisher.files import atomic_path
from tomfisher.results.points import CSV_COLUMNS, Point
from tomfisher.results.tables import align
from tomfisher.text_files import read_json


@dataclass(frozen=True)
class AblationPoint(Point):
    """One measured state: a `Point` with the name of what was done.

    `mask` is "none" where weights are untouched, "random" for a control (random masks, other pairs, other tokens).

    Args:
        name: of the intervention, or of the combination that this is a control of; "" for the untouched model.
        interventions: its parts, in the order in which they act.
        control: whether this is a control, made with `seed`.
    """

    name: str = ""
    interventions: tuple[str, ...] = ()
    control: bool = False

    @property
    def key(self) -> str:
        """The point's file name."""
        return ablation_key(self.name, self.seed if self.control else None)


def ablation_key(name: str, seed: int | None = None) -> str:
    """File name of a point: its name with letters, digits, `.`, `+`, `-` and `_` alone, and the control's seed."""
    readable = re.sub(r"[^A-Za-z0-9.+-]", "_", name) or "baseline"
    return readable + ("" if seed is None else f"-seed{seed}")


@dataclass(frozen=True)
class Ablations:
    """All ablations of one model.

    Args:
        baseline: the untouched model.
        points: interventions and their controls, in the order of measurement.
        left_out: what could not be done on this model, and why.
        provenance: where the numbers come from.
    """

    baseline: AblationPoint
    points: tuple[AblationPoint, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def interventions(self) -> tuple[AblationPoint, ...]:
        """The points that are no controls."""
        return tuple(point for point in self.points if not point.control)

    def controls(self, name: str) -> tuple[AblationPoint, ...]:
        """The controls of one intervention."""
        return tuple(point for point in self.points if point.control and point.name == name)

    def holm(self, condition: str | None = None) -> dict[str, float]:
        """The p against the untouched model (sign-flip test over scenes), corrected over all interventions.

        Args:
            condition: None is the headline.
        """
        name = condition or self.baseline.headline()
        points = self.interventions
        corrected = holm([point.conditions[name]["p_vs_baseline"] for point in points])
        return {point.name: p for point, p in zip(points, corrected, strict=True)}

    @property
    def comparisons(self) -> int:
        """How many interventions p is corrected over."""
        return len(self.interventions)

    def after(self, earlier: Ablations | None) -> Ablations:
        """The same points in the order of an earlier answer, new ones behind, and what either could not do.

        Args:
            earlier: an answer about the same model and mask, or None.
        """
        if earlier is None:
            return self
        place = {name: i for i, name in enumerate(dict.fromkeys(point.name for point in earlier.points))}
        points = sorted(self.points, key=lambda point: place.get(point.name, len(place)))
        measured = {point.name for point in points}
        left_out = {**earlier.left_out, **self.left_out}
        kept = {name: why for name, why in left_out.items() if name not in measured}
        return replace(self, points=tuple(points), left_out=kept)

    def to_dict(self) -> dict[str, Any]:
        """The content of `ablations.json`."""
        headline = self.baseline.headline()
        return {
            "baseline": asdict(self.baseline),
            "points": [asdict(point) for point in self.points],
            "holm": {name: self.holm(name) for name in dict.fromkeys((headline, ALL))},
            "comparisons": self.comparisons,
            "left_out": self.left_out,
            "provenance": self.provenance,
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ablations:
        """Read `ablations.json`, or the folder that holds it.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is no such file.
        """
        file = Path(path) / "ablations.json" if Path(path).is_dir() else Path(path)
        try:
            data = read_json(file)
            baseline, *points = (point_from(entry) for entry in (data["baseline"], *data["points"]))
            return cls(baseline, tuple(points), dict(data["left_out"]), dict(data["provenance"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is no ablations.json of tomfisher ({error}). Run `tomfisher ablate` again."
            ) from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `ablations.json` and `ablations.csv` (one row per point and condition) into a folder."""
        with atomic_path(Path(folder) / "ablations.json") as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        with (
            atomic_path(Path(folder) / "ablations.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as handle,
        ):
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(["name", "interventions", "control", *CSV_COLUMNS])
            for point in (self.baseline, *self.points):
                writer.writerows(_rows(point))

    def table(self) -> str:
        """One line per intervention, the range over its controls behind it.

        Columns: intervention, number of perturbed weights, accuracy of the headline condition with its 95 %
        interval and corrected p, accuracy of all questions, perplexity and its rise; accuracy of the headline
        condition and rise of the perplexity under the controls.
        """
        headline = self.baseline.headline()
        others = [] if headline == ALL else [ALL]
        header = ["intervention", "weights", headline, "95 % interval", "p (Holm)", *others]
        header += ["perplexity", "rise"]
        count = max(len(self.controls(point.name)) for point in self.interventions)
        header += [f"{count} controls", "their rise"] if count else []
        corrected = self.holm()
        rows = [self._row(self.baseline, headline, others, None)]
        rows += [self._row(point, headline, others, corrected[point.name]) for point in self.interventions]
        return align(header, [[*row, "", ""][: len(header)] for row in rows], left=(0,))

    def _row(self, point: AblationPoint, headline: str, others: Sequence[str], p: float | None) -> list[str]:
        low, high = point.conditions[headline]["ci95"]
        controls = self.controls(point.name)
        row = [
            point.name or "none (baseline)",
            str(point.nnz),
            f"{point.accuracy(headline):.3f}",
            f"{low:.3f} to {high:.3f}",
            "" if p is None else f"{p:.2g}",
            *(f"{point.accuracy(name):.3f}" for name in others),
            f"{point.perplexity:.4g}",
            "" if p is None else f"{self.rise(point):+.1%}",
        ]
        if controls:
            row.append(_span([c.accuracy(headline) for c in controls], "{:.3f}"))
            row.append(_span([round(self.rise(c), 3) + 0.0 for c in controls], "{:+.1%}"))
        return row

    def rise(self, point: AblationPoint) -> float:
        """Relative change of the perplexity against the untouched model: 0.05 is five percent more."""
        return point.perplexity / self.baseline.perplexity - 1.0


def point_from(entry: dict[str, Any]) -> AblationPoint:
    """A point as JSON gives it back."""
    return AblationPoint(**{**entry, "interventions": tuple(entry["interventions"])})


def _span(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low}..{high}"


def _rows(point: AblationPoint) -> Iterator[list[Any]]:
    for name, score in point.conditions.items():
        yield [
            *(point.name, "+".join(point.interventions), point.control),
            *(point.kappa, point.mask, point.seed, point.nnz, name),
            *(score["n"], score["accuracy"], *score["ci95"], score["p_vs_baseline"]),
            *(point.perplexity, point.word_perplexity),
        ]
