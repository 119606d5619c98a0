"""`ablate`: parts of a mask and changes of activations, each measured like a point of the study, with controls."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

from tomfisher.ablation.results import AblationPoint, Ablations, ablation_key
from tomfisher.evaluate.records import Scores
from tomfisher.interventions import Ablation, Internals, Intervention, Target, intervene, restrict
from tomfisher.models.families import Architecture, UnsupportedModel, describe
from tomfisher.progress import progress_bar
from tomfisher.results.points import BASELINE, RANDOM, TASK_CONTROL, conditions_of, with_scenes
from tomfisher.runtime.rules import remembered
from tomfisher.runtime.torch_state import plain_torch

if TYPE_CHECKING:
    from tomfisher.evaluate import Perplexity
    from tomfisher.masks import SparseMask
    from tomfisher.perturbation import WeightSums

Points = MutableMapping[str, tuple[AblationPoint, dict[str, Any]]]


@dataclass(frozen=True)
class _State:
    """One state of the model to measure."""

    name: str
    elements: tuple[str, ...]
    mask: SparseMask | None
    interventions: tuple[Intervention, ...]
    seed: int | None = None

    @property
    def key(self) -> str:
        return ablation_key(self.name, self.seed)


@plain_torch()
@remembered()
def ablate(
    model: Any,
    mask: SparseMask,
    measure: Callable[[], tuple[Scores, Perplexity]],
    ablations: Sequence[Ablation],
    internals: Internals | None = None,
    random_seeds: int = 5,
    seed: int = 0,
    fill: str | float = "mean",
    compat: str | None = None,
    label: str = TASK_CONTROL,
    points: Points | None = None,
    progress: bool = True,
) -> Ablations:
    """Measure a model untouched, under each ablation, and under controls of each.

    The parts of the mask that one ablation names are perturbed together, as one mask; its interventions act at the same
    time. Its controls are made with the seeds `seed`, `seed + 1`, ...: a random mask with the same count in every
    tensor (`random_like`), other frequency pairs, the key of another token.

    Args:
        model: a causal language model of transformers.
        mask: over its weights.
        measure: scores and perplexity of the model in its present state (`tomfisher.studies.measure.Measure`).
        ablations: what to do, see `parse`.
        internals: of the untouched model (`measure_internals`); for what depends on its frequencies or queries.
        random_seeds: controls per ablation.
        seed: of the first control, and of `fill="noise"`.
        fill: what perturbed weights become.
        compat: "authors" for the paper's mean.
        label: what `mask` is called in the points that perturb it.
        points: finished points by key, with their scores, all of this model, mask and measurement; what is there is not
            measured again, and belongs to the answer whether it is asked for or not. None: start afresh.
        progress: show a bar on a terminal.

    Returns:
        `Ablations`, those asked for first; what the model has no part for is listed there with the reason.

    Raises:
        UnsupportedModel: none of them can be done on this model.
        ValueError: an intervention on a layer or head that the model does not have, or that lacks its internals;
            two ablations of one name.
    """
    from tomfisher.perturbation import WeightSums

    points = {} if points is None else points
    states, left_out = _plan(model, mask, ablations, internals, random_seeds, seed)
    sums = WeightSums()
    found = []
    baseline: Scores | None = None
    bar = progress_bar(total=len(states), desc="ablations", unit="point", enabled=progress)
    with bar:
        for state in states:
            if state.key not in points:
                with _applied(model, state, internals, fill, seed, compat, sums) as nnz:
                    scores, perplexity = measure()
                conditions = conditions_of(scores, baseline)
                point = _point(state, mask.kappa or 0.0, label, nnz, conditions, perplexity)
                points[state.key] = point, scores.to_dict()
            point, records = points[state.key]
            scores = Scores.from_dict(records)
            found.append(with_scenes(point, scores, baseline))
            baseline = scores if baseline is None else baseline
            bar.update(1)
    assert baseline is not None
    found += _others(points, {state.key for state in states}, baseline)
    return Ablations(found[0], tuple(found[1:]), left_out)


def _others(points: Points, known_keys: set[str], baseline: Scores) -> list[AblationPoint]:
    """The finished points of earlier calls, by name, each intervention before its controls."""
    found = []
    for key in list(points):
        if key not in known_keys:
            with contextlib.suppress(KeyError):  # damaged, which is said when it is read
                point, records = points[key]
                found.append(with_scenes(point, Scores.from_dict(records), baseline))
    return sorted(found, key=lambda point: (point.name, point.control, point.seed or 0))


def _plan(
    model: Any,
    mask: SparseMask,
    ablations: Sequence[Ablation],
    internals: Internals | None,
    random_seeds: int,
    seed: int,
) -> tuple[list[_State], dict[str, str]]:
    """The states, the untouched one first; and what is left out with the reason."""
    states, left_out = [_State("", (), None, ())], {}
    for name, count in Counter(ablation.name for ablation in ablations).items():
        if count > 1:
            raise ValueError(f"{count} ablations are called {name!r}. Measure them in calls of their own.")
    architecture, reason = known(model)
    for ablation in ablations:
        try:
            own = _masked(mask, ablation, architecture, internals)
            if ablation.interventions and architecture is None:
                raise UnsupportedModel(reason)
            for intervention in ablation.interventions:
                assert architecture is not None
                intervention.bind(Target(model, architecture, internals))
        except UnsupportedModel as error:
            left_out[ablation.name] = str(error)
            continue
        if own is not None and own.nnz == 0:
            left_out[ablation.name] = "The mask has no entry there."
            continue
        states.append(_State(ablation.name, ablation.elements, own, ablation.interventions))
        states += [_control(states[-1], seed + i, internals or Internals()) for i in range(random_seeds)]
    if len(states) == 1:
        reasons = "\n".join(f"  {name}: {why}" for name, why in left_out.items())
        raise UnsupportedModel(f"None of the ablations can be done on this model:\n{reasons}")
    return states, left_out


def known(model: Any) -> tuple[Architecture | None, str]:
    """What is known about a model's attention, or None and why nothing is."""
    try:
        return describe(model), ""
    except UnsupportedModel as error:
        return None, str(error)


def _masked(
    mask: SparseMask, ablation: Ablation, architecture: Architecture | None, internals: Internals | None
) -> SparseMask | None:
    """The union of the parts of the mask that an ablation perturbs; None where it perturbs none."""
    spectrum = internals.spectrum if internals else None
    parts = [restrict(mask, architecture, part, spectrum) for part in ablation.parts]
    return reduce(or_, parts) if parts else None


def _control(state: _State, seed: int, internals: Internals) -> _State:
    mask = None if state.mask is None else state.mask.random_like(seed)
    others = tuple(intervention.control(seed, internals) for intervention in state.interventions)
    return _State(state.name, state.elements, mask, others, seed)


@contextlib.contextmanager
def _applied(
    model: Any,
    state: _State,
    internals: Internals | None,
    fill: str | float,
    seed: int,
    compat: str | None,
    sums: WeightSums,
) -> Iterator[int]:
    """The model in a state, for the time of the block; yields the number of perturbed weights."""
    from tomfisher.perturbation import perturb

    with contextlib.ExitStack() as stack:
        nnz = 0
        if state.mask is not None:
            written = perturb(model, state.mask, fill=fill, seed=seed, compat=compat, sums=sums)
            nnz = stack.enter_context(written).nnz
        if state.interventions:
            stack.enter_context(intervene(model, *state.interventions, internals=internals))
        yield nnz


def _point(
    state: _State,
    kappa: float,
    label: str,
    nnz: int,
    conditions: dict[str, dict[str, Any]],
    perplexity: Perplexity,
) -> AblationPoint:
    control = state.seed is not None
    kind = RANDOM if control else label if state.mask is not None else BASELINE
    return AblationPoint(
        kappa=kappa if state.mask is not None else 0.0,
        mask=kind,
        seed=state.seed,
        nnz=nnz,
        conditions=conditions,
        perplexity=perplexity.token,
        word_perplexity=perplexity.word,
        name=state.name,
        interventions=state.elements,
        control=control,
    )
