"""What changes of queries, keys and attention scores have in common: a name, a place, a control."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tomfisher.ablation.call import Edit
from tomfisher.ablation.internals import Internals
from tomfisher.models.families import Architecture, Attention, UnsupportedModel

Place = int | tuple[int, int]  # a layer, or (layer, query head)
LAST_RANDOM_POSITION = 16


@dataclass(frozen=True)
class Intervention(ABC):
    """One change of what attention layers compute with.

    Args:
        at: layers, or (layer, query head) pairs, to change; None: everywhere. Grouped query heads share a key
            head: a change of its keys is felt by all of them.
    """

    at: tuple[Place, ...] | None

    @property
    @abstractmethod
    def name(self) -> str:
        """As it is written on the command line."""

    @abstractmethod
    def bind(self, model: Any, architecture: Architecture, internals: Internals | None) -> dict[int, Edit]:
        """What to do in each layer of one model.

        Args:
            model: the model.
            architecture: of that model.
            internals: what the untouched model does, for those that depend on it.

        Raises:
            UnsupportedModel: the model has no such part.
            ValueError: a layer or head that it does not have, or no internals where they are needed.
        """

    @abstractmethod
    def control(self, seed: int, internals: Internals) -> Intervention:
        """The same change where it should not matter: other pairs, or the key of another token."""

    def heads(self, architecture: Architecture) -> dict[int, Tensor]:
        """Query heads to change, int64, per layer."""
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

    @property
    def where(self) -> str:
        """`at` as it is written behind the name."""
        return "" if self.at is None else "@" + "/".join(map(place_name, self.at))


def key_heads(attention: Attention, heads: Tensor) -> Tensor:
    """The key heads that some query heads look at, int64."""
    return (heads // (attention.heads // attention.kv_heads)).unique()


def other_position(seed: int, internals: Internals) -> int:
    """A token that is not the first, but that every prompt has among its early ones."""
    last = min(max(internals.shortest - 1, 1), LAST_RANDOM_POSITION)
    order = random.Random(last).sample(range(1, last + 1), last)  # neighbouring seeds: different tokens
    return order[seed % last]


def place_name(place: Place) -> str:
    """A layer as `3`, a head as `3.1`."""
    return f"{place[0]}.{place[1]}" if isinstance(place, tuple) else str(place)


def places(at: Sequence[Place] | None) -> tuple[Place, ...] | None:
    """Layers and heads as a tuple; refuses an empty one."""
    if at is None:
        return None
    if not at:
        raise ValueError("at names no layer or head. Leave it out to mean all of them.")
    return tuple(tuple(place) if isinstance(place, (tuple, list)) else place for place in at)  # type: ignore[misc]


def finite(value: float, what: str) -> float:
    """The value; refuses one that is not finite."""
    if not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number, got {value}.")
    return float(value)


def token_position(position: int) -> int:
    """The position; refuses a negative one."""
    if position < 0:
        raise ValueError(f"position must be 0 (the first token) or more, got {position}.")
    return position


def token_name(position: int) -> str:
    """A token other than the first, as it is written behind the name."""
    return f":{position}" if position else ""


def number(value: float) -> str:
    """A number as it is typed: 30, 0.5."""
    return repr(float(value)).removesuffix(".0")
