"""Ablations in words: `qk`, `scale-band:slow:0.5`, `dominant-rows+off-sink:0.1`."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from tomfisher.ablation.frequencies import scale_band, scale_pairs
from tomfisher.ablation.intervention import Intervention, Place
from tomfisher.ablation.keys import aim_key, rotate_key, scale_key
from tomfisher.ablation.regions import FULL, PARTS, atoms, nested
from tomfisher.ablation.sink import off_sink
from tomfisher.analysis.rope import PARTS as QUERIES_AND_KEYS

DEFAULT = (
    FULL,
    "qk",
    "vo",
    "mlp",
    "dominant-rows",
    "other-rows",
    "scale-band:slow:0.5",
    "scale-band:dominant:0.5",
    "rotate-key:90",
    "scale-key:0.5",
    "off-sink:0.1",
    "scale-band:dominant:0.5+off-sink:0.1",
)
MIXER = "mixer"
FORMS = {
    "scale-band": "scale-band:BAND:FACTOR[:q|:k]",
    "scale-pairs": "scale-pairs:PAIR.PAIR...:FACTOR[:q|:k]",
    "rotate-key": "rotate-key:DEGREES[:TOKEN]",
    "aim-key": "aim-key:COSINE[:TOKEN]",
    "scale-key": "scale-key:FACTOR[:TOKEN]",
    "off-sink": "off-sink:FACTOR[:TOKEN]",
}
Maker = Callable[[list[str], list[Place] | None], Intervention]


@dataclass(frozen=True)
class Ablation:
    """What one point does to the model.

    Args:
        parts: of the mask, whose union is perturbed (`regions.PARTS`).
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
    whole = Ablation()
    for element in text.split("+"):
        whole += _element(element.strip())
    return whole


def combinations(ablations: Sequence[Ablation], size: int) -> list[Ablation]:
    """The ablations, and all their combinations of up to `size`, each once.

    Those that would do the same thing twice are passed over: "full" or "qk" with a part of it, or two parts that make a
    third one that is there ("dominant-rows" and "other-rows" beside "qk").

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"combine must be at least 1 (each intervention alone), got {size}.")
    found = {ablation.name: ablation for ablation in ablations}
    done = {_effect(ablation) for ablation in ablations}
    for count in range(2, size + 1):
        for chosen in itertools.combinations(ablations, count):
            elements = [element for one in chosen for element in one.elements]
            both = sum(chosen, Ablation())
            effect = _effect(both)
            if len(set(elements)) == len(elements) and not nested(both.parts) and effect not in done:
                found[both.name] = both
                done.add(effect)
    return list(found.values())


def _effect(ablation: Ablation) -> tuple[frozenset[str], tuple[str, ...]]:
    """What an ablation does: equal for two that do the same."""
    parts = frozenset().union(*(atoms(part) for part in ablation.parts))
    return parts, tuple(intervention.name for intervention in ablation.interventions)


def parse_all(texts: Iterable[str]) -> list[Ablation]:
    """Ablations from their names, each once.

    Raises:
        ValueError: there are none, or one of them is no ablation.
    """
    found = {ablation.name: ablation for ablation in map(parse, texts)}
    if not found:
        raise ValueError(f"There is nothing to ablate. Name some of: {', '.join((*PARTS, *FORMS.values()))}.")
    return list(found.values())


def _element(text: str) -> Ablation:
    if text in PARTS:
        return Ablation(parts=(text,))
    body, _, where = text.partition("@")
    kind, *arguments = body.split(":")
    if kind not in FORMS:
        known = (*PARTS, *FORMS)
        close = difflib.get_close_matches(kind, known, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join((*PARTS, *FORMS.values()))}."
        raise ValueError(f"Unknown ablation {text!r}. {hint}")
    try:
        places = [_place(place) for place in where.split("/")] if "@" in text else None
        made = _MAKERS[kind](arguments, places)
    except _FormError:
        raise ValueError(
            f"{text!r} must look like {FORMS[kind]}, with @LAYER or @LAYER.HEAD/LAYER.HEAD behind it to say where."
        ) from None
    return Ablation(interventions=(made,))


class _FormError(Exception):
    """A name that does not have the form of its kind."""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _FormError from None


def _integers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(".")]
    except ValueError:
        raise _FormError from None


def _place(text: str) -> Place:
    numbers = _integers(text)
    if len(numbers) > 2:
        raise _FormError
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _scaled(arguments: list[str], at: list[Place] | None, pairs: bool) -> Intervention:
    """Arguments are BAND:FACTOR or BAND:FACTOR:PART, with numbers of pairs for a band."""
    if len(arguments) not in (2, 3):
        raise _FormError
    factor, asked = _number(arguments[1]), arguments[2:]
    parts = [part for part in QUERIES_AND_KEYS if not asked or part in asked]
    if not parts:
        raise _FormError
    if pairs:
        return scale_pairs(_integers(arguments[0]), factor, parts, at=at)
    return scale_band(arguments[0], factor, parts, at=at)


def _on_token(make: Callable[..., Intervention]) -> Maker:
    """Arguments are VALUE or VALUE:TOKEN."""

    def made(arguments: list[str], at: list[Place] | None) -> Intervention:
        if len(arguments) not in (1, 2):
            raise _FormError
        position = _integers(arguments[1]) if len(arguments) == 2 else [0]
        if len(position) != 1:
            raise _FormError
        return make(_number(arguments[0]), position=position[0], at=at)

    return made


_MAKERS: dict[str, Maker] = {
    "scale-band": partial(_scaled, pairs=False),
    "scale-pairs": partial(_scaled, pairs=True),
    "rotate-key": _on_token(rotate_key),
    "aim-key": _on_token(aim_key),
    "scale-key": _on_token(scale_key),
    "off-sink": _on_token(off_sink),
}
