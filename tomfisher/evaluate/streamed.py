"""Measuring a model whose layers come and go: questions and text, in many states of its weights, in one reading.

Rows are run whole: a prefix cache would have to be kept for every layer. The numbers are those, to the bit, of the
resident model with `share_prefix=False`.

A program that measures runs twice (`tomfisher.runtime.layerwise`): its forwards are written down, all layers run, and
it runs again with what came out. It may not depend on the numbers, so what does is assumed the first time: that the
model keeps the rules, and rows of any length stand in one batch. Where the model says otherwise, the forwards that
follow from that are written down too, and the layers are read once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from tomfisher.evaluate.choice import ChoiceEvaluator
from tomfisher.evaluate.perplexity import PerplexityEvaluator
from tomfisher.evaluate.records import Scores
from tomfisher.perturbation import LayerwisePerturbation, State, WeightSums
from tomfisher.perturbation.layerwise import OUTSIDE
from tomfisher.progress import progress_bar
from tomfisher.runtime import ranks
from tomfisher.runtime.boundaries import Boundaries
from tomfisher.runtime.forward import forward, logprobs, ordinary_ids
from tomfisher.runtime.layer_calls import Call, UnsupportedLayers
from tomfisher.runtime.layer_guard import examine_layers
from tomfisher.runtime.layerwise import Layers, StreamedModel
from tomfisher.runtime.modes import running
from tomfisher.runtime.rules import Rules, difference, noise
from tomfisher.runtime.torch_state import plain_torch

Result = TypeVar("Result")
_LEARNT_FROM = 8  # tokens
_ASSUMED = Rules(rounding=math.inf)


@dataclass(frozen=True)
class Program:
    """What is run on a model.

    Attributes:
        ask: asks the model, as it was loaded, about the rules.
        run: runs it in some state, and gives the result.
    """

    ask: Callable[[Any], Rules]
    run: Callable[[Any, Rules], Any]


@dataclass(frozen=True)
class Measured:
    """What the programs gave in one state.

    Attributes:
        results: one a program.
        nnz: number of weights written.
        implementations: of the operations that wrote them.
    """

    results: tuple[Any, ...]
    nnz: int = 0
    implementations: dict[str, str] = field(default_factory=dict)


def questions(evaluator: ChoiceEvaluator) -> Program:
    """Answers to all questions of an evaluator, in whole rows."""

    def run(model: Any, rules: Rules) -> Scores:
        return evaluator.score(model, share_prefix=False, progress=False, rules=rules)

    return Program(evaluator.ask, run)


def text(evaluator: PerplexityEvaluator) -> Program:
    """Perplexity of an evaluator's text."""
    return Program(evaluator.ask, lambda model, rules: evaluator.score(model, progress=False, rules=rules))


@plain_torch()
def measure(
    opened: StreamedModel,
    programs: Sequence[Program],
    states: Sequence[State] = (State(),),
    boundaries: Boundaries | None = None,
    progress: bool = False,
) -> list[Measured]:
    """Run programs on every state of a model, all in one reading of its weights.

    The weights are read once more for each thing that the programs' forwards depend on and that was not assumed. The
    rules are asked of the model as it was loaded, once. The parameters outside the layers stay in memory throughout;
    the hidden states of one boundary between two layers of all forwards in all states do so too, or go to a file. Of
    several ranks each does all of it.

    Args:
        opened: from `tomfisher.models.opened.open_model`.
        programs: from `questions` and `text`.
        states: of the weights.
        boundaries: where hidden states are kept; None: in memory.
        progress: show a bar on a terminal.

    Returns:
        One a state, in their order.

    Raises:
        UnsupportedLayers: the model's layers cannot be run one at a time.
        ValueError: a mask is of another model; or what the programs raise.
    """
    layers = Layers(opened, Boundaries() if boundaries is None else boundaries)
    try:
        with ranks.alone():  # how often a program runs depends on what it learns
            return _Measurement(layers, programs, states).run(progress)
    finally:
        layers.boundaries.close()


def measured(opened: StreamedModel, program: Program, progress: bool = False) -> Any:
    """What one program gives on the model as it is."""
    ((result,),) = (found.results for found in measure(opened, [program], progress=progress))
    return result


def refuse_resident_ways(method: str, share_prefix: bool | str = "auto") -> None:
    """Refuse what cannot be done while layers come and go.

    Raises:
        ValueError: answers are to be generated, or beginnings to be kept in a cache.
    """
    if method == "generate":
        raise ValueError(
            "Generating needs the whole model in memory, since every token is a forward through all layers. Use the "
            "method choice, or load the model whole: load_model, or without --stream."
        )
    if share_prefix is True:
        raise ValueError(
            "share_prefix=True needs the whole model in memory, since every layer keeps a cache. Use "
            "share_prefix='auto' or False, or load the model whole: load_model."
        )


@dataclass
class _Section:
    """What runs in one state, and its forwards that the layers were run for."""

    perturbation: LayerwisePerturbation
    calls: list[Call] = field(default_factory=list)
    fresh: list[Call] = field(default_factory=list)


class _Measurement:
    def __init__(self, layers: Layers, programs: Sequence[Program], states: Sequence[State]) -> None:
        self.layers, self.programs = layers, programs
        self.model: Any = layers.model
        inside = {name for names in layers.parameters for name in names}
        self.outer = [name for name, _ in self.model.named_parameters() if name not in inside]
        self._asking = self._section(State())
        self._states = [self._section(state) for state in states]
        self._sums = OUTSIDE, WeightSums()  # of the layer that is there
        self._ids = torch.tensor([ordinary_ids(self.model)[:_LEARNT_FROM]])
        self._whole: Tensor | None = None  # log-probabilities of these tokens, by an ordinary forward

    def _section(self, state: State) -> _Section:
        return _Section(LayerwisePerturbation(self.model, self.layers.modules, state))

    def run(self, progress: bool) -> list[Measured]:
        """Pass after pass, until every forward is answered."""
        with self.layers.opened.loaded(self.outer):
            examine_layers(self.layers)
            while True:
                results = self._results()
                sections = [self._asking, *self._states]
                if not any(section.fresh for section in sections):
                    break
                self._pass(sections, progress)
        parts = [section.perturbation for section in self._states]
        return [Measured(r, p.nnz, p.implementations) for r, p in zip(results, parts, strict=True)]

    def _results(self) -> list[tuple[Any, ...]]:
        """What the programs give in every state, which is right where nothing is fresh afterwards."""
        rules = self._attempt(self._asking, self._ask)
        if self._asking.fresh or rules is None:
            rules = [_ASSUMED] * len(self.programs)
        pairs = list(zip(self.programs, rules, strict=True))
        results: list[tuple[Any, ...]] = []
        recorded: _Section | None = None
        for section in self._states:
            if section.perturbation.is_inside and recorded is not None and recorded.fresh:
                section.fresh = self.layers.again(recorded.fresh)  # below the layers nothing differs
                continue
            found = self._attempt(
                section, lambda: tuple(program.run(self.model, said) for program, said in pairs)
            )
            results.append(found or ())
            if section.perturbation.is_inside and recorded is None:
                recorded = section
        return results

    def _ask(self) -> list[Rules]:
        """What the model says to the rules; refused where a short text comes out otherwise than in one forward."""
        found = self._short()
        if self._whole is not None and not self._asking.fresh:
            apart = difference(found, self._whole)
            if apart > noise(self._whole):
                raise UnsupportedLayers(
                    f"log-probabilities of a short text differ by {apart:.2g} nats between layer by layer and one "
                    "forward: something else passes between the layers. Load the model whole (load_model, or leave "
                    "--stream out)."
                )
        return [program.ask(self.model) for program in self.programs]

    def _short(self) -> Tensor:
        with torch.no_grad(), running(self.model):
            return logprobs(forward(self.model, self._ids).logits)

    def _attempt(self, section: _Section, work: Callable[[], Result]) -> Result | None:
        """What a program gives in a state; None if it could not go on with numbers that are not the model's."""
        with section.perturbation.applied(OUTSIDE), self.layers.resolving(section.calls) as section.fresh:
            try:
                return work()
            except UnsupportedLayers:
                raise
            except ValueError:
                if not section.fresh:
                    raise
        return None

    def _pass(self, sections: Sequence[_Section], progress: bool) -> None:
        """Every layer on what is fresh."""
        bar = progress_bar(total=len(self.layers.modules), desc="layers", unit="layer", enabled=progress)
        altered = [(partial(self._altered, section), section.fresh) for section in self._states]
        self._check_room()
        with bar:
            lead = self._short if self._whole is None else None
            whole = self.layers.forward(
                self._asking.fresh, done=lambda number: bar.update(1), altered=altered, lead=lead
            )
            self._whole = self._whole if whole is None else whole
        for section in sections:
            section.calls += section.fresh
            section.fresh = []

    def _check_room(self) -> None:
        """Refuse before the work hidden states that do not fit where they are kept."""
        boundaries, sections = self.layers.boundaries, [self._asking, *self._states]
        calls = [call for section in sections for call in section.fresh]
        size = boundaries[0, calls[0]].element_size()
        needed = sum(call.shape.numel() * size for call in calls)
        if (room := boundaries.room) is not None and needed > room:
            raise ValueError(
                f"The hidden states of {len(self._states)} states of the weights take {needed / 1e9:.3g} GB, and there "
                f"are {room / 1e9:.3g} GB. Keep them in a file on a larger disk (--boundary DIR), or measure fewer "
                "masks or questions at once."
            )

    def _altered(self, section: _Section, number: int) -> AbstractContextManager[None]:
        if self._sums[0] != number:
            self._sums = number, WeightSums()
        return section.perturbation.applied(number, self._sums[1])
