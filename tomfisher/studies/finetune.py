"""`compare`: the same training on the masked entries, on random entries and with LoRA."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from tomfisher.evaluate.records import Scores
from tomfisher.finetune.lora import finetune_lora, plan_lora, require_peft
from tomfisher.finetune.masked import TunedEntries, finetune_masked
from tomfisher.finetune.training import check_counts, check_learning_rate, mean_loss
from tomfisher.masks import SparseMask
from tomfisher.perturbation import perturb
from tomfisher.results.conditions import conditions_of, perplexities
from tomfisher.results.results import Results
from tomfisher.results.row import RANDOM, Row, rows_of
from tomfisher.results.trainings import LORA, MASKED, START, UNTOUCHED
from tomfisher.runtime.rules import check_rules, remembered
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.sample import Sample

if TYPE_CHECKING:
    from tomfisher.evaluate import Perplexity
    from tomfisher.finetune.delta import Delta
    from tomfisher.perturbation.fill import FillLike


@dataclass(frozen=True)
class Plan:
    """How the trainings are done.

    Args:
        steps: optimiser steps of every training.
        learning_rates: the grid; each training keeps the one with the lowest loss on the validation samples.
        batch_size: samples per step.
        random_masks: how many masks of random entries are trained beside the mask.
        lora: whether LoRA is trained too.
        seed: of the order of the samples, of the first random mask and of LoRA's matrices.

    Raises:
        ValueError: a setting is out of range.
    """

    steps: int = 100
    learning_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    batch_size: int = 8
    random_masks: int = 3
    lora: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self.steps, self.batch_size)
        if not self.learning_rates:
            raise ValueError("learning_rates is empty. Give at least one, e.g. 1e-4,1e-3.")
        for rate in self.learning_rates:
            check_learning_rate(rate)
        if self.random_masks < 0:
            raise ValueError(f"random_masks must be 0 or more, got {self.random_masks}.")


@dataclass(frozen=True)
class Damage:
    """A mask that is overwritten before any training: the weaker start.

    Args:
        mask: the entries.
        fill: what they become (`tomfisher.perturb`).
    """

    mask: SparseMask
    fill: FillLike = "mean"


class Tuned(Protocol):
    """What a training leaves in a model: `TunedEntries` or `TunedLora`."""

    losses: list[float]
    trainable: int

    def undo(self) -> None:
        """Take it out of the model."""

    def reapply(self) -> None:
        """Put it back in, after `undo`."""


Measurement = Callable[[], "tuple[Scores, Perplexity]"]
_Training = Callable[[float], Tuned]


class _Run:
    """The comparison under way: what was measured so far, and the scores that tests are made against."""

    def __init__(
        self,
        model: nn.Module,
        train: Sequence[Sample],
        validation: Sequence[Sample],
        measure: Measurement,
        plan: Plan,
        say: Callable[[str], None],
        progress: bool,
    ) -> None:
        self.model, self.measure, self.plan, self.say = model, measure, plan, say
        self.validation = validation
        self.options: dict[str, Any] = {
            "samples": train,
            "steps": plan.steps,
            "batch_size": plan.batch_size,
            "seed": plan.seed,
            "progress": progress,
        }
        self.rows: list[Row] = []
        self.rules: dict[str, Any] = {}
        self.trainings: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}
        self.scores: dict[str, Scores] = {}
        self.delta: Delta | None = None

    def add(self, name: str, **facts: Any) -> None:
        """Measure the model as it is now."""
        scores, perplexity = self.measure()
        self.rules = self.rules or {"questions": scores.rules, "perplexity": perplexity.rules}
        self.rows += rows_of(
            {
                "state": name,
                "trainable": 0,
                **perplexities(perplexity),
                "conditions": _conditions(name, scores, self.scores),
                **facts,
            }
        )
        self.scores.setdefault(name, scores)

    def train(
        self, name: str, training: _Training, seed: int | None = None, about: str | None = None
    ) -> None:
        """Train at every learning rate, keep the best on the validation samples, and measure it."""
        best: tuple[float, float, Tuned] | None = None
        losses: dict[str, float | None] = {}
        failure = ""
        for rate in self.plan.learning_rates:
            try:
                tuned = training(rate)
            except FloatingPointError as error:
                losses[f"{rate:g}"], failure = None, str(error)
                continue
            try:
                loss = mean_loss(self.model, self.validation)
            finally:
                tuned.undo()
            losses[f"{rate:g}"] = loss if math.isfinite(loss) else None
            if math.isfinite(loss) and (best is None or loss < best[0]):
                best = loss, rate, tuned
        self.trainings.append({"state": name, "seed": seed, "validation_losses": losses})
        if best is None:
            self.left_out[name] = f"no training came to an end. {failure or 'Every validation loss is NaN.'}"
            return
        _, rate, tuned = best
        tuned.reapply()
        try:
            if name == MASKED and isinstance(tuned, TunedEntries):
                self.delta = tuned.delta
            self.add(
                name,
                seed=seed,
                trainable=tuned.trainable,
                learning_rate=rate,
                train_loss=tuned.losses[-1],
                about=about,
            )
        finally:
            tuned.undo()

    def masked(self, name: str, mask: SparseMask, seed: int | None = None) -> None:
        """Train the entries of a mask."""
        drawn = "" if seed is None else f" (seed {seed})"
        rates = ", ".join(f"{rate:g}" for rate in self.plan.learning_rates)
        self.say(f"training {mask.nnz:,} {name} entries{drawn}, learning rate {rates}")
        label = f"{name}{drawn}"
        self.train(
            name,
            lambda rate: finetune_masked(self.model, mask, learning_rate=rate, label=label, **self.options),
            seed,
        )

    def lora(self, mask: SparseMask, budget: int) -> None:
        """Train LoRA of at most `budget` parameters, or note why there is none."""
        try:
            plan = plan_lora(self.model, list(mask), budget)
        except ValueError as error:
            self.left_out[LORA] = str(error)
            return
        self.say(f"training LoRA, {plan.describe()}")
        training = partial(finetune_lora, self.model, plan, **self.options)
        self.train(LORA, lambda rate: training(learning_rate=rate), self.plan.seed, plan.describe())


@plain_torch()
@remembered()
def compare(
    model: nn.Module,
    mask: SparseMask,
    train: Sequence[Sample],
    validation: Sequence[Sample],
    measure: Measurement,
    plan: Plan | None = None,
    damage: Damage | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = True,
) -> tuple[Results, Delta | None]:
    """Train the mask's entries, random entries and LoRA alike, and measure each; the model is left as it was.

    Every training sees the same samples in the same order for the same number of steps, and its learning rate is
    the one of the grid with the lowest loss on the validation samples. Tests are sign flips over clusters, against the
    untouched model, against the start and against the trained mask.

    Args:
        model: a transformers causal language model.
        mask: the entries to train; random masks take as many per tensor, LoRA at most as many in all.
        train: training samples.
        validation: samples that choose the learning rate; neither of `train` nor of what `measure` asks.
        measure: gives scores and perplexity of the model as it is.
        plan: settings; None for the defaults.
        damage: entries that are overwritten before the trainings and put back in the end; None starts from the
            untouched model.
        say: called with one line per step.
        progress: show bars on a terminal.

    Returns:
        The rows of every state, the untouched one first; and the delta of the trained mask (None if its training
        diverged at every learning rate).

    Raises:
        ModuleNotFoundError: LoRA is asked for and peft is not installed; nothing was trained.
        ValueError: the mask is of another model or empty, or no validation samples.
    """
    plan = plan or Plan()
    if not validation:
        raise ValueError("There are no validation samples to choose the learning rate on. Pass at least one.")
    if plan.lora:
        require_peft()
    training = check_rules(model, [sample.input_ids for sample in train], plan.batch_size)
    run = _Run(model, train, validation, measure, plan, say, progress)
    say("measuring the untouched model")
    run.add(UNTOUCHED)
    if damage is None:
        _train_all(run, mask)
    else:
        with perturb(model, damage.mask, fill=damage.fill, seed=plan.seed) as written:
            say(f"measuring the start: {written.nnz} entries overwritten ({damage.fill})")
            run.add(START, about=f"{written.nnz} entries overwritten, fill {damage.fill}")
            _train_all(run, mask)
    provenance = {
        "plan": {**asdict(plan), "learning_rates": list(plan.learning_rates)},
        "mask": {**mask.describe(), "sha256": mask.sha256},
        "damage": None if damage is None else {"mask": damage.mask.describe(), "fill": str(damage.fill)},
        "samples": {"train": len(train), "validation": len(validation)},
        "trainings": run.trainings,
        "rules": {**run.rules, "training": training.to_dict()},
    }
    return Results(tuple(run.rows), provenance, run.left_out), run.delta


def _train_all(run: _Run, mask: SparseMask) -> None:
    run.masked(MASKED, mask)
    for i in range(run.plan.random_masks):
        seed = run.plan.seed + i
        run.masked(RANDOM, mask.random_like(seed), seed)
    if run.plan.lora:
        run.lora(mask, mask.nnz)


def _conditions(name: str, scores: Scores, before: dict[str, Scores]) -> dict[str, dict[str, Any]]:
    """Accuracies and intervals of a state, with tests against the states that `before` holds."""
    start = None if name == START else before.get(START, before.get(UNTOUCHED))
    against = {"baseline": before.get(UNTOUCHED), "start": start, "masked": before.get(MASKED)}
    tests = {key: None if other is None else conditions_of(scores, other) for key, other in against.items()}
    conditions = {}
    for condition, score in conditions_of(scores).items():
        del score["p_vs_baseline"]
        ps = {
            f"p_vs_{key}": None if test is None else test[condition]["p_vs_baseline"]
            for key, test in tests.items()
        }
        conditions[condition] = {**score, **ps}
    return conditions
