"""Which points a study measures, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

from tomfisher.results.row import BASELINE, CONTROL_ONLY, RANDOM, TASK_CONTROL, point_key
from tomfisher.studies.config import Config


@dataclass(frozen=True)
class PlannedPoint:
    """One point to measure: which mask at which κ, and the seed of a random one."""

    mask: str
    kappa: float
    seed: int | None = None

    @property
    def key(self) -> str:
        """The point's file name."""
        return point_key(self.mask, self.kappa, self.seed)


def planned_points(config: Config) -> list[PlannedPoint]:
    """All points of a study: the baseline, then κ by κ task-control, control-only and the random masks."""
    random_kappas = config.kappas if config.random_kappas is None else config.random_kappas
    plans = [PlannedPoint(BASELINE, 0.0)]
    for kappa in config.kappas:
        plans += [PlannedPoint(TASK_CONTROL, kappa), PlannedPoint(CONTROL_ONLY, kappa)]
        if kappa in random_kappas:
            plans += [PlannedPoint(RANDOM, kappa, config.seed + i) for i in range(config.random_seeds)]
    return plans
