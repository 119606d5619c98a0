"""What a study will take, before it is run: two Fisher diagonals and the points of the sweep."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tomfisher import ops
from tomfisher.models.load import LoadedModel, load_model, resolve_device, resolve_dtype
from tomfisher.progress import note
from tomfisher.results.power import too_few
from tomfisher.studies.config import Config
from tomfisher.studies.experiment import eval_dtype
from tomfisher.studies.inputs import Inputs
from tomfisher.studies.measure import Measure, perplexity_window
from tomfisher.studies.parsing import parse_params
from tomfisher.studies.points import noun_of, planned_points, tested

if TYPE_CHECKING:
    from tomfisher.fisher.plan import FisherPlan

TIMED_QUESTIONS = 32
TIMED_TOKENS = 512


@dataclass(frozen=True)
class StudyPlan:
    """Cost of a study.

    Attributes:
        fisher: the plan of each Fisher diagonal that has to be taken ("task", "control"); a store that the
            config names is not in it.
        points: measurements of the model, the untouched one included.
        questions: questions per point.
        perplexity_tokens: tokens of general text per point.
        seconds_per_point: rough estimate, from a few timed questions and a short text.
        lacking: why the questions are too few to find anything, or None.
    """

    fisher: dict[str, FisherPlan]
    points: int
    questions: int
    perplexity_tokens: int
    seconds_per_point: float
    lacking: str | None = None

    @property
    def seconds(self) -> float:
        """The whole study, without loading the model."""
        return sum(plan.seconds for plan in self.fisher.values()) + self.points * self.seconds_per_point


def plan_study(config: Config, impl: ops.Impl = "auto") -> StudyPlan:
    """Probe the model, time a sample of each set and a few questions, and add up.

    Args:
        config: the study.
        impl: implementation of the operations.

    Returns:
        StudyPlan; memory is arithmetic, time an extrapolation.

    Raises:
        ValueError: the perplexity's window does not fit the model, or an input is unusable.
    """
    from tomfisher.fisher.plan import plan_fisher

    inputs, device = Inputs(config), resolve_device(config.device)
    needed = [which for which in ("task", "control") if getattr(config, f"{which}_store") is None]
    fisher = {}
    note(f"loading and probing {config.model}, then timing a sample of each set and a few questions")
    if needed:
        loaded = _load(config, resolve_dtype(config.fisher_dtype, torch.device("cpu")), device)
        for which in needed:
            samples = inputs.samples(which, loaded)
            fisher[which] = plan_fisher(
                loaded.model, samples, parse_params(config.params), config.tokens_per_batch, impl
            )
    loaded = _load(config, eval_dtype(config.eval_dtype, device), device)
    return StudyPlan(
        fisher=fisher,
        points=len(planned_points(config)),
        questions=len(inputs.questions),
        perplexity_tokens=config.perplexity_tokens,
        seconds_per_point=_seconds_per_point(config, len(inputs.questions), loaded),
        lacking=too_few(inputs.headline_clusters(), tested(config), noun_of(config)),
    )


def _load(config: Config, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    loaded = load_model(config.model, dtype, device, config.trust_remote_code, config.revision)
    perplexity_window(config, loaded.model)  # a window that does not fit is refused first of all
    return loaded


def _seconds_per_point(config: Config, questions: int, loaded: LoadedModel) -> float:
    few = min(questions, TIMED_QUESTIONS)
    tokens = min(config.perplexity_tokens, TIMED_TOKENS)
    small = dataclasses.replace(config, limit=few, perplexity_tokens=tokens)
    measure = Measure(small, Inputs(small), loaded)
    measure()  # asks the model about its rules, which a study does once
    score, perplexity = _fastest(measure.score), _fastest(measure.perplexity)
    return score * questions / few + perplexity * config.perplexity_tokens / tokens


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the faster of two calls: other work on the machine makes them longer only."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
