"""What all interventions share: a name, the layers and heads where they act, a control."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from tomfisher.interventions.inputs import Edit
from tomfisher.interventions.internals import Internals
from tomfisher.models.families import Architecture, Attention, UnsupportedModel

if TYPE_CHECKING:
    from typing_extensions import Self

Place = int | tuple[int, int]  # a layer, or (layer, query head)
LAST_RANDOM_POSITION = 16


class Target(NamedTuple):
    """The model that an intervention acts on.

    Attributes:
        model: the model.
        architecture: of that model.
        internals: measurements of the untouched model, for interventions that depend on them.
    """

    model: Any
    architecture: Architecture
    internals: Internals | None = None

    def measured(self, what: str) -> Internals:
        """The internals, which `what` cannot do without.

        Raises:
            ValueError: there are none, or none of this model.
        """
        internals = self.internals
        if internals is None or not internals.mean_query.keys() >= self.architecture.attention.keys():
            raise ValueError(
                f"{what} depends on what the untouched model does. Give internals=measure_internals(model, prompts)."
            )
        return internals


class FormError(ValueError):
    """A name that does not have the form of its kind."""


@dataclass(frozen=True)
class Intervention(ABC):
    """One change to what attention layers compute with.

    Attributes:
        kind: the first word of the name, such as "scale-key".
        form: what the name looks like, such as "scale-key:FACTOR[:TOKEN]".
        at: layers, or (layer, query head) pairs, to change; None: everywhere. Query heads of a group share a key
            head, so all of them see a change of its keys.
    """

    kind: ClassVar[str]
    form: ClassVar[str]

    at: Sequence[Place] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.at is not None and not self.at:
            raise ValueError("at names no layer or head. Leave it out to mean all of them.")
        if self.at is not None:
            places = tuple(tuple(at) if isinstance(at, (tuple, list)) else at for at in self.at)
            self._set(at=places)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        """As it is written on the command line: `scale-key:0.5@2`."""
        where = "" if self.at is None else "@" + "/".join(map(place_name, self.at))
        return ":".join((self.kind, *self.arguments)) + where

    @property
    @abstractmethod
    def arguments(self) -> tuple[str, ...]:
        """What follows the kind in the name."""

    @classmethod
    @abstractmethod
    def from_arguments(cls, arguments: Sequence[str], at: Sequence[Place] | None) -> Self:
        """The intervention with these `arguments`.

        Raises:
            FormError: they do not have the form of this kind.
            ValueError: one of them is out of range.
        """

    @abstractmethod
    def bind(self, target: Target) -> dict[int, Edit]:
        """What to do in each layer of one model.

        Raises:
            UnsupportedModel: the model has no such part.
            ValueError: a layer or head that it does not have, or no internals where they are needed.
        """

    @abstractmethod
    def control(self, seed: int, internals: Internals) -> Self:
        """The same change where it should not matter: other pairs, or the key of another token."""

    def heads(self, architecture: Architecture) -> dict[int, Tensor]:
        """Query heads to change, int64, per layer.

        Raises:
            UnsupportedModel: the model has no attention, or none that can be changed.
            ValueError: a layer or head that it does not have.
        """
        layers = self._changeable(architecture)
        if self.at is None:
            return {layer: torch.arange(attention.heads) for layer, attention in layers.items()}
        chosen: dict[int, set[int]] = {}
        for place in self.at:
            layer, head = place if isinstance(place, tuple) else (place, None)
            if layer not in layers or (head is not None and not 0 <= head < layers[layer].heads):
                raise ValueError(
                    f"{self.name}: there is no layer or head {place_name(place)}. Layers with attention: "
                    f"{', '.join(map(str, layers))}; heads of each: {next(iter(layers.values())).heads}."
                )
            chosen.setdefault(layer, set()).update(range(layers[layer].heads) if head is None else [head])
        return {layer: torch.tensor(sorted(heads)) for layer, heads in chosen.items()}

    def _changeable(self, architecture: Architecture) -> dict[int, Attention]:
        try:
            layers = architecture.attending("query and no key")
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{self.name}: {error}") from error
        if not architecture.interface:
            raise UnsupportedModel(
                f"{self.name}: {architecture.model_type} computes attention in its own code, not through transformers' "
                "attention interface, so its queries and keys cannot be changed on the way. Parts of a mask can be "
                "ablated."
            )
        if any(attention.repeats > 1 for attention in layers.values()):
            raise UnsupportedModel(
                f"{self.name}: {architecture.model_type} repeats its key heads before they reach attention, and each "
                "would have to be changed alike. Parts of a mask can be ablated."
            )
        return layers


@dataclass(frozen=True)
class OneToken(Intervention):
    """An intervention with one number on the key of one token; its control takes another token.

    Args:
        value: the number.
        position: of the token, 0 for the first that is not padding.

    Raises:
        ValueError: a value that is not finite, or a negative position.
    """

    quantity: ClassVar[str] = "factor"  # what `value` is

    value: float
    position: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(value=finite(self.value, self.quantity))
        if self.position < 0:
            raise ValueError(f"position must be 0 (the first token) or more, got {self.position}.")

    @property
    def arguments(self) -> tuple[str, ...]:
        """Value, and the position unless it is the first."""
        return (number(self.value), *([str(self.position)] if self.position else []))

    @classmethod
    def from_arguments(cls, arguments: Sequence[str], at: Sequence[Place] | None) -> Self:
        """See `Intervention.from_arguments`."""
        if len(arguments) not in (1, 2):
            raise FormError
        value, position = read_number(arguments[0]), read_integers((*arguments, "0")[1])
        if len(position) != 1:
            raise FormError
        return cls(value, position[0], at=at)

    def control(self, seed: int, internals: Internals) -> Self:
        """The same on another of the early tokens that every prompt has."""
        last = min(max(internals.shortest - 1, 1), LAST_RANDOM_POSITION)
        order = random.Random(last).sample(range(1, last + 1), last)  # neighbouring seeds: different tokens
        return replace(self, position=order[seed % last])


def key_heads(attention: Attention, heads: Tensor) -> Tensor:
    """The key heads that some query heads read, int64."""
    return (heads // (attention.heads // attention.kv_heads)).unique()


def finite(value: float, what: str) -> float:
    """The value as a float.

    Raises:
        ValueError: it is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number, got {value}.")
    return float(value)


def place_name(place: Place) -> str:
    """A layer as `3`, a head as `3.1`."""
    return f"{place[0]}.{place[1]}" if isinstance(place, tuple) else str(place)


def read_place(text: str) -> Place:
    """The inverse of `place_name`."""
    numbers = read_integers(text)
    if len(numbers) > 2:
        raise FormError
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def number(value: float) -> str:
    """A number as it is typed: 30, 0.5."""
    return repr(float(value)).removesuffix(".0")


def read_number(text: str) -> float:
    """The number that a text is, or `FormError`."""
    try:
        return float(text)
    except ValueError:
        raise FormError from None


def read_integers(text: str) -> list[int]:
    """The integers of a text such as `3.7`, or `FormError`."""
    try:
        return [int(part) for part in text.split(".")]
    except ValueError:
        raise FormError from None
