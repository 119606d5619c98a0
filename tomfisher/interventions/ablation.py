"""Ablations by name: `qk`, `scale-band:slow:0.5`, `dominant-rows+off-sink:0.1`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tomfisher.interventions.base import FormError, Intervention, read_place
from tomfisher.interventions.frequencies import ScaleBand, ScalePairs
from tomfisher.interventions.keys import AimKey, RotateKey, ScaleKey
from tomfisher.interventions.parts import PARTS, atoms, nested
from tomfisher.interventions.sink import OffSink
from tomfisher.near_miss import nearest

INTERVENTIONS: tuple[type[Intervention], ...] = (
    ScaleBand,
    ScalePairs,
    RotateKey,
    AimKey,
    ScaleKey,
    OffSink,
)
FORMS = {intervention.kind: intervention.form for intervention in INTERVENTIONS}


@dataclass(frozen=True)
class Ablation:
    """What one state of the model differs in.

    Args:
        parts: of the mask, whose union is perturbed (`PARTS`).
        interventions: on activations, in the order in which they act.
    """

    parts: tuple[str, ...] = ()
    interventions: tuple[Intervention, ...] = ()

    @property
    def elements(self) -> tuple[str, ...]:
        """The names of everything in it."""
        return (*self.parts, *(intervention.name for intervention in self.interventions))

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return "+".join(self.elements)

    def __add__(self, other: Ablation) -> Ablation:
        parts = dict.fromkeys((*self.parts, *other.parts))
        return Ablation(tuple(parts), (*self.interventions, *other.interventions))


def parse(text: str) -> Ablation:
    """One ablation from its name.

    `A+B` does both. Keys are those of the first token unless a TOKEN is given, counted from 0. `@` says where an
    intervention acts: `off-sink:0.1@2` in layer 2, `@0.3/5.1` in head 3 of layer 0 and head 1 of layer 5.

    Raises:
        ValueError: an unknown name, or an argument that is out of range.
    """
    return sum((_element(element.strip()) for element in text.split("+")), Ablation())


def parse_all(texts: Iterable[str]) -> list[Ablation]:
    """Ablations from their names, each once.

    Raises:
        ValueError: there are none, or one of the names is unknown.
    """
    by_name = {ablation.name: ablation for ablation in map(parse, texts)}
    if not by_name:
        raise ValueError(f"There is nothing to ablate. Name some of: {', '.join((*PARTS, *FORMS.values()))}.")
    return list(by_name.values())


def combinations(ablations: Sequence[Ablation], size: int) -> list[Ablation]:
    """The ablations, and all their combinations of up to `size`, each once.

    Those that would do the same thing twice are left out: "full" or "qk" with a part of it, or two parts that make a
    third one of the list ("dominant-rows" and "other-rows" where "qk" is one).

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"combine must be at least 1 (each intervention alone), got {size}.")
    by_name = {ablation.name: ablation for ablation in ablations}
    effects = {_effect(ablation) for ablation in ablations}
    for count in range(2, size + 1):
        for chosen in itertools.combinations(ablations, count):
            together = sum(chosen, Ablation())
            elements, effect = [e for ablation in chosen for e in ablation.elements], _effect(together)
            if len(set(elements)) == len(elements) and not nested(together.parts) and effect not in effects:
                by_name[together.name] = together
                effects.add(effect)
    return list(by_name.values())


def _effect(ablation: Ablation) -> tuple[frozenset[str], tuple[str, ...]]:
    """What an ablation does: equal for two that do the same."""
    parts = frozenset().union(*(atoms(part) for part in ablation.parts))
    return parts, tuple(intervention.name for intervention in ablation.interventions)


def _element(text: str) -> Ablation:
    if text in PARTS:
        return Ablation(parts=(text,))
    body, at, where = text.partition("@")
    kind, *arguments = body.split(":")
    made = next((intervention for intervention in INTERVENTIONS if intervention.kind == kind), None)
    if made is None:
        close = nearest(kind, (*PARTS, *FORMS))
        hint = f"Did you mean {close!r}?" if close else f"Ablations: {', '.join((*PARTS, *FORMS.values()))}."
        raise ValueError(f"Unknown ablation {text!r}. {hint}")
    try:
        places = [read_place(place) for place in where.split("/")] if at else None
        return Ablation(interventions=(made.from_arguments(arguments, places),))
    except FormError:
        raise ValueError(
            f"{text!r} must look like {made.form}, optionally followed by @LAYER or @LAYER.HEAD/LAYER.HEAD."
        ) from None
