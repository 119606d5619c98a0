"""Turning and scaling the key of one token, the first unless told otherwise."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tomfisher.interventions.base import OneToken, Target, key_heads
from tomfisher.interventions.inputs import Edit
from tomfisher.models.families import Attention

KeyChange = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class OneKey(OneToken):
    """A change of the key of one token."""

    def bind(self, target: Target) -> dict[int, Edit]:
        """See `Intervention.bind`."""
        edits = {}
        for layer, chosen in self.heads(target.architecture).items():
            heads = key_heads(target.architecture.attention[layer], chosen)
            edits[layer] = _edit(self.position, heads, self.change(target, layer, heads))
        return edits

    @abstractmethod
    def change(self, target: Target, layer: int, heads: Tensor) -> KeyChange:
        """What maps the keys `[B, len(heads), D]` of some key heads of a layer, at least float32, to new ones."""


@dataclass(frozen=True)
class ScaleKey(OneKey):
    """Multiply the key of the first token by a factor.

    Args:
        value: the factor, any finite number.
        position: see `OneToken`.
        at: see `Intervention`.
    """

    kind: ClassVar[str] = "scale-key"
    form: ClassVar[str] = "scale-key:FACTOR[:TOKEN]"

    def change(self, target: Target, layer: int, heads: Tensor) -> KeyChange:
        """See `OneKey.change`."""
        return lambda key: key * self.value


@dataclass(frozen=True)
class RotateKey(OneKey):
    """Turn the key of the first token by an angle a towards a random direction orthogonal to it.

    k becomes cos(a)·k + sin(a)·‖k‖·u, where u is a fixed random vector of the layer and key head made orthogonal to k.

    Args:
        value: the angle, degrees.
        position: see `OneToken`.
        seed: of the random directions.
        at: see `Intervention`.
    """

    kind: ClassVar[str] = "rotate-key"
    form: ClassVar[str] = "rotate-key:DEGREES[:TOKEN]"
    quantity: ClassVar[str] = "degrees"

    seed: int = 0

    def change(self, target: Target, layer: int, heads: Tensor) -> KeyChange:
        """See `OneKey.change`."""
        cos, sin = math.cos(math.radians(self.value)), math.sin(math.radians(self.value))
        drawn = _directions(target.architecture.attention[layer], self.seed, layer)[heads]

        def turn(key: Tensor) -> Tensor:
            away = _orthogonal(drawn.to(key), key)
            return cos * key + sin * key.norm(dim=-1, keepdim=True) * away

        return turn


@dataclass(frozen=True)
class AimKey(OneKey):
    """Turn the key of the first token, in the plane that it spans with the head's mean query, to a given cosine.

    The key's norm stays. Query heads that share the key count by the mean of their mean queries. It needs the internals
    of the untouched model.

    Args:
        value: the cosine, from -1 to 1; 0 makes the key orthogonal to the mean query.
        position: see `OneToken`.
        seed: of the direction taken by a key that is parallel to the mean query.
        at: see `Intervention`.

    Raises:
        ValueError: a cosine out of range, or a negative position.
    """

    kind: ClassVar[str] = "aim-key"
    form: ClassVar[str] = "aim-key:COSINE[:TOKEN]"
    quantity: ClassVar[str] = "cosine"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.value <= 1:
            raise ValueError(f"cosine must lie from -1 to 1, got {self.value}.")

    def change(self, target: Target, layer: int, heads: Tensor) -> KeyChange:
        """See `OneKey.change`."""
        attention, sine = target.architecture.attention[layer], math.sqrt(1 - self.value**2)
        means = target.measured(self.name).mean_query[layer]
        shared = means.double().unflatten(0, (attention.kv_heads, -1)).mean(1)[heads]
        goal = shared / shared.norm(dim=-1, keepdim=True)
        drawn = _directions(attention, self.seed, layer)[heads]

        def aim(key: Tensor) -> Tensor:
            target = goal.to(key)
            away = _orthogonal(key, target, otherwise=drawn.to(key))
            return key.norm(dim=-1, keepdim=True) * (self.value * target + sine * away)

        return aim


def _edit(position: int, heads: Tensor, change: KeyChange) -> Edit:
    return lambda inputs: inputs.with_key(position, heads, change)


def _directions(attention: Attention, seed: int, layer: int) -> Tensor:
    """Float64 `[H_kv, D]`, normal draws, one for each key head."""
    generator = torch.Generator().manual_seed(seed * 1009 + layer)
    return torch.randn(attention.kv_heads, attention.head_dim, generator=generator, dtype=torch.float64)


def _orthogonal(x: Tensor, axis: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """The unit vector of the part of x that is orthogonal to `axis`; of `otherwise` where x has none."""
    unit = axis / axis.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(axis.dtype).tiny)
    rest = x
    for _ in range(2):  # the second time removes what rounding left
        rest = rest - (rest * unit).sum(-1, keepdim=True) * unit
    norm = rest.norm(dim=-1, keepdim=True)
    if otherwise is not None:
        none = norm <= 8 * torch.finfo(x.dtype).eps * x.norm(dim=-1, keepdim=True)
        return torch.where(none, _orthogonal(otherwise, axis), rest / norm.clamp_min(1e-30))
    return rest / norm
