"""Which points a study measures, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

from tomfisher.masks import criteria
from tomfisher.results.row import BASELINE, CONTROL_ONLY, RANDOM, TASK_CONTROL, point_key
from tomfisher.results.rule import PAPER, Rule
from tomfisher.studies.config import Config


@dataclass(frozen=True)
class PlannedPoint:
    """One point to measure: which mask at which κ, the seed of a random one, and the rule that chooses the mask."""

    mask: str
    kappa: float
    seed: int | None = None
    rule: Rule = PAPER

    @property
    def key(self) -> str:
        """The point's file name."""
        return point_key(self.mask, self.kappa, self.seed, self.rule)


def planned_points(config: Config) -> list[PlannedPoint]:
    """All points of a study: the baseline, then rule by rule and κ by κ the mask, control-only and the random masks.

    The paper's rule comes first. A criterion that reads no texts has no control-only mask.
    """
    random_kappas = config.kappas if config.random_kappas is None else config.random_kappas
    plans = [PlannedPoint(BASELINE, 0.0)]
    for rule in rules_of(config):
        for kappa in config.kappas:
            if rule.control_kappa == kappa:  # what the rule without a control κ of its own has measured
                continue
            plans.append(PlannedPoint(TASK_CONTROL, kappa, rule=rule))
            if criteria.get(rule.criterion).reads_texts:
                plans.append(PlannedPoint(CONTROL_ONLY, kappa, rule=rule))
            if kappa in random_kappas:
                seeds = range(config.seed, config.seed + config.random_seeds)
                plans += [PlannedPoint(RANDOM, kappa, seed, rule) for seed in seeds]
    return plans


def rules_of(config: Config) -> list[Rule]:
    """The rules that a study's masks are chosen by, the paper's first."""
    rules = []
    for name in dict.fromkeys((criteria.FISHER, *(config.criterion or ()))):
        criterion = None if name == criteria.FISHER else name
        rules.append(Rule(criterion))
        if criteria.get(name).subtracts:
            rules += [Rule(criterion, kappa) for kappa in config.control_kappa or ()]
    return rules


def tested(config: Config) -> int:
    """Number of masks that the verdict tests."""
    return sum(plan.mask == TASK_CONTROL for plan in planned_points(config))


def noun_of(config: Config) -> str:
    """What the verdict looks at several of: "kappa", or "mask" where there are other rules than the paper's."""
    return "kappa" if rules_of(config) == [PAPER] else "mask"
