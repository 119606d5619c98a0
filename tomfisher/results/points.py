"""States of a model with their conditions nested: what the report reads until it reads rows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tomfisher.evaluate.records import ALL
from tomfisher.results import results
from tomfisher.results.conditions import conditions_of as conditions_of
from tomfisher.results.row import BASELINE as BASELINE
from tomfisher.results.row import CONTROL_ONLY as CONTROL_ONLY
from tomfisher.results.row import HEADLINE as HEADLINE
from tomfisher.results.row import RANDOM as RANDOM
from tomfisher.results.row import TASK_CONTROL as TASK_CONTROL
from tomfisher.results.row import point_key as point_key
from tomfisher.text_files import read_json


@dataclass(frozen=True)
class Point:
    """One measured state of the model.

    Args:
        kappa: fraction of each tensor's weights that was selected; 0.0 for the baseline.
        mask: "none", "task-control", "control-only" or "random".
        seed: seed of a random mask, else None.
        nnz: number of perturbed weights.
        conditions: per condition `{"n", "n_scenes", "accuracy", "ci95": [low, high], "p_vs_baseline"}`; accuracies
            in [0, 1], Wilson 95 % intervals for what the scenes are worth, two-sided p of the exact sign-flip test
            over scenes (None for the baseline): `tomfisher.evaluate.statistics`.
        perplexity: per token, on the held-out control text.
        word_perplexity: per word of the same text; None where it is beyond a float.
    """

    kappa: float
    mask: str
    seed: int | None
    nnz: int
    conditions: dict[str, dict[str, Any]]
    perplexity: float
    word_perplexity: float | None = None

    @property
    def key(self) -> str:
        """The point's file name: "baseline", "task-control-1e-05" or "random-1e-05-seed0"."""
        if self.mask == BASELINE:
            return "baseline"
        return point_key(self.mask, self.kappa, self.seed)

    def accuracy(self, condition: str) -> float:
        """Accuracy of one condition, in [0, 1]."""
        return float(self.conditions[condition]["accuracy"])

    def headline(self) -> str:
        """The condition that the verdict is about: "false-belief" where the task has it, else "all"."""
        return HEADLINE if HEADLINE in self.conditions else ALL


@dataclass(frozen=True)
class Results:
    """A whole study.

    Args:
        baseline: the untouched model.
        points: every mask at every κ, in the order of measurement.
        provenance: where the numbers come from.
    """

    baseline: Point
    points: tuple[Point, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def at(self, kappa: float, mask: str) -> tuple[Point, ...]:
        """The points of one mask at one κ: one, or one per seed for random masks."""
        return tuple(point for point in self.points if point.kappa == kappa and point.mask == mask)

    @property
    def kappas(self) -> tuple[float, ...]:
        """The κ of the sweep, rising."""
        return tuple(sorted({point.kappa for point in self.points}))

    def flat(self) -> results.Results:
        """The same as rows."""
        return results.Results.from_dict(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The content of `results.json`."""
        points = [asdict(point) for point in self.points]
        return {"baseline": asdict(self.baseline), "points": points, "provenance": self.provenance}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Results:
        """Rebuild what `to_dict` gave."""
        points = tuple(Point(**point) for point in data["points"])
        return cls(Point(**data["baseline"]), points, dict(data["provenance"]))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Read `results.json`, or the run folder that holds it.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is no results file.
        """
        file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
        try:
            return cls.from_dict(read_json(file))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is no results.json of tomfisher ({error}). Run the study again."
            ) from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `results.json` and `results.csv` (one row per point and condition) into a folder."""
        self.flat().save(folder)


def rise(results: Results, point: Point) -> float:
    """Relative change of the perplexity against the baseline: 0.05 is five percent more."""
    return point.perplexity / results.baseline.perplexity - 1.0
