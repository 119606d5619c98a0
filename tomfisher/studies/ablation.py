"""`ablate`: parts of a mask and interventions, each measured like a point of a sweep, beside random controls."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

from tomfisher.evaluate.records import Scores
from tomfisher.interventions import Ablation, Internals, Intervention, Target, intervene, restrict
from tomfisher.models.families import Architecture, UnsupportedModel, describe
from tomfisher.progress import progress_bar
from tomfisher.results.ablations import with_holm
from tomfisher.results.conditions import by_clusters, measured, perplexities
from tomfisher.results.folder import RunFolder
from tomfisher.results.results import Results
from tomfisher.results.row import BASELINE, RANDOM, TASK_CONTROL, Row, state_key
from tomfisher.runtime.rules import remembered
from tomfisher.runtime.torch_state import plain_torch

if TYPE_CHECKING:
    from tomfisher.evaluate import Perplexity
    from tomfisher.masks import SparseMask
    from tomfisher.perturbation import WeightSums


@dataclass(frozen=True)
class _State:
    """One state of the model to measure."""

    name: str = ""
    elements: tuple[str, ...] = ()
    mask: SparseMask | None = None
    interventions: tuple[Intervention, ...] = ()
    seed: int | None = None

    @property
    def key(self) -> str:
        return state_key(self.name, self.seed)


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
    folder: RunFolder | None = None,
    progress: bool = True,
) -> Results:
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
        folder: where finished points of this very model, mask and measurement are kept: those that are there are not
            measured again, and belong to the answer whether they are asked for or not. None: keep nothing.
        progress: show a bar on a terminal.

    Returns:
        Rows of the untouched model, then of each ablation (`state`) before its controls, those asked for first;
        `left_out` says what the model has no part for, and why.

    Raises:
        UnsupportedModel: none of them can be done on this model.
        ValueError: an intervention on a layer or head that the model does not have, or that lacks its internals;
            two ablations of one name.
    """
    from tomfisher.perturbation import WeightSums

    states, left_out = _plan(model, mask, ablations, internals, random_seeds, seed)
    sums = WeightSums()
    measured_rows: list[Row] = []
    baseline: Scores | None = None
    with progress_bar(total=len(states), desc="ablations", unit="point", enabled=progress) as bar:
        for state in states:
            saved = None if folder is None else folder.load_point(state.key)
            if saved is None:
                with _applied(model, state, internals, fill, seed, compat, sums) as nnz:
                    scores, perplexity = measure()
                facts = _facts(state, mask.kappa or 0.0, label, nnz, perplexity)
                rows = measured(scores, baseline, **facts)
                if folder is not None:
                    folder.save_point(rows, scores.to_dict())
            else:
                rows, scores = saved[0], Scores.from_dict(saved[1])
            measured_rows += by_clusters(rows, scores, baseline)
            baseline = baseline or scores
            bar.update(1)
    if folder is not None:
        measured_rows += _earlier(folder, {state.key for state in states}, baseline)
    return with_holm(Results(tuple(measured_rows), left_out=left_out))


def _earlier(folder: RunFolder, keys: Iterable[str], baseline: Scores | None) -> list[Row]:
    """The finished points of earlier calls, by name, each ablation before its controls."""
    saved = [folder.load_point(key) for key in folder.points() if key not in keys]
    states = [by_clusters(rows, Scores.from_dict(scores), baseline) for rows, scores in filter(None, saved)]
    ordered = sorted(states, key=lambda rows: (str(rows[0].state), bool(rows[0].control), rows[0].seed or 0))
    return [row for rows in ordered for row in rows]


def _plan(
    model: Any,
    mask: SparseMask,
    ablations: Sequence[Ablation],
    internals: Internals | None,
    random_seeds: int,
    seed: int,
) -> tuple[list[_State], dict[str, str]]:
    """The states, the untouched one first; and what is left out with the reason."""
    states, left_out = [_State()], {}
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


def _facts(state: _State, kappa: float, label: str, nnz: int, perplexity: Perplexity) -> dict[str, Any]:
    """What the rows of a state say besides its conditions."""
    control = state.seed is not None
    return {
        "state": state.name,
        "interventions": state.elements,
        "control": control,
        "kappa": 0.0 if state.mask is None else kappa,
        "mask": RANDOM if control else BASELINE if state.mask is None else label,
        "seed": state.seed,
        "nnz": nnz,
        **perplexities(perplexity),
    }
