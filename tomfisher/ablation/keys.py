"""Turning and scaling the key of one token, the first unless told otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tomfisher.ablation.call import Edit
from tomfisher.ablation.internals import Internals, needed
from tomfisher.ablation.intervention import (
    Intervention,
    Place,
    finite,
    key_heads,
    number,
    other_position,
    places,
    token_name,
    token_position,
)
from tomfisher.models.families import Architecture, Attention


@dataclass(frozen=True)
class RotateKey(Intervention):
    """The key of one token turned by an angle towards a random direction orthogonal to it; its norm stays."""

    degrees: float
    position: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        """`rotate-key:30`."""
        return f"rotate-key:{number(self.degrees)}{token_name(self.position)}{self.where}"

    def bind(self, model: Any, architecture: Architecture, internals: Internals | None) -> dict[int, Edit]:
        """See `Intervention.bind`."""
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        edits = {}
        for layer, chosen in self.heads(architecture).items():
            attention = architecture.attention[layer]
            heads = key_heads(attention, chosen)
            drawn = _directions(attention, self.seed, layer)[heads]

            def turn(key: Tensor, drawn: Tensor = drawn) -> Tensor:
                away = _orthogonal(drawn.to(key), key)
                return cos * key + sin * key.norm(dim=-1, keepdim=True) * away

            edits[layer] = _on_key(self.position, heads, turn)
        return edits

    def control(self, seed: int, internals: Internals) -> RotateKey:
        """The key of another token."""
        return replace(self, position=other_position(seed, internals))


@dataclass(frozen=True)
class AimKey(Intervention):
    """The key of one token turned, in the plane that it spans with the mean query, to a given cosine with it.

    Query heads that share the key count by the mean of their mean queries.
    """

    cosine: float
    position: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        """`aim-key:0`."""
        return f"aim-key:{number(self.cosine)}{token_name(self.position)}{self.where}"

    def bind(self, model: Any, architecture: Architecture, internals: Internals | None) -> dict[int, Edit]:
        """See `Intervention.bind`."""
        sine = math.sqrt(1 - self.cosine**2)
        edits = {}
        for layer, chosen in self.heads(architecture).items():
            means = needed(architecture, internals, self.name).mean_query[layer]
            attention = architecture.attention[layer]
            heads = key_heads(attention, chosen)
            shared = means.double().unflatten(0, (attention.kv_heads, -1)).mean(1)[heads]
            goal = shared / shared.norm(dim=-1, keepdim=True)
            drawn = _directions(attention, self.seed, layer)[heads]

            def aim(key: Tensor, goal: Tensor = goal, drawn: Tensor = drawn) -> Tensor:
                target = goal.to(key)
                away = _orthogonal(key, target, otherwise=drawn.to(key))
                return key.norm(dim=-1, keepdim=True) * (self.cosine * target + sine * away)

            edits[layer] = _on_key(self.position, heads, aim)
        return edits

    def control(self, seed: int, internals: Internals) -> AimKey:
        """The key of another token."""
        return replace(self, position=other_position(seed, internals))


@dataclass(frozen=True)
class ScaleKey(Intervention):
    """The key of one token times a factor."""

    factor: float
    position: int = 0

    @property
    def name(self) -> str:
        """`scale-key:0.5`."""
        return f"scale-key:{number(self.factor)}{token_name(self.position)}{self.where}"

    def bind(self, model: Any, architecture: Architecture, internals: Internals | None) -> dict[int, Edit]:
        """See `Intervention.bind`."""
        return {
            layer: _on_key(
                self.position, key_heads(architecture.attention[layer], chosen), lambda k: k * self.factor
            )
            for layer, chosen in self.heads(architecture).items()
        }

    def control(self, seed: int, internals: Internals) -> ScaleKey:
        """The key of another token."""
        return replace(self, position=other_position(seed, internals))


def rotate_key(
    degrees: float, position: int = 0, seed: int = 0, at: Sequence[Place] | None = None
) -> RotateKey:
    """Turn the key of the first token by an angle towards a random direction orthogonal to it.

    k becomes cos(a)·k + sin(a)·‖k‖·u, where u is a fixed random vector of the layer and key head made orthogonal to k.

    Args:
        degrees: the angle.
        position: of the token; 0 is the first that is no padding.
        seed: of the random directions.
        at: layers, or (layer, query head) pairs; None: everywhere.

    Raises:
        ValueError: an angle that is not finite, or a negative position.
    """
    return RotateKey(places(at), finite(degrees, "degrees"), token_position(position), seed)


def aim_key(cosine: float, position: int = 0, seed: int = 0, at: Sequence[Place] | None = None) -> AimKey:
    """Turn the key of the first token until its cosine with the head's mean query is the one given.

    It needs the internals of the untouched model. The key's norm stays.

    Args:
        cosine: from -1 to 1; 0 makes the key orthogonal to the mean query.
        position: of the token; 0 is the first that is no padding.
        seed: of the direction taken by a key that is parallel to the mean query.
        at: layers, or (layer, query head) pairs; None: everywhere.

    Raises:
        ValueError: a cosine out of range, or a negative position.
    """
    if not -1 <= cosine <= 1:
        raise ValueError(f"cosine must lie from -1 to 1, got {cosine}.")
    return AimKey(places(at), float(cosine), token_position(position), seed)


def scale_key(factor: float, position: int = 0, at: Sequence[Place] | None = None) -> ScaleKey:
    """Multiply the key of the first token by a factor.

    Args:
        factor: any finite number.
        position: of the token; 0 is the first that is no padding.
        at: layers, or (layer, query head) pairs; None: everywhere.

    Raises:
        ValueError: a factor that is not finite, or a negative position.
    """
    return ScaleKey(places(at), finite(factor, "factor"), token_position(position))


def _on_key(position: int, heads: Tensor, change: Any) -> Edit:
    return lambda call: call.with_key(position, heads, change)


def _directions(attention: Attention, seed: int, layer: int) -> Tensor:
    """Float64 `[H_kv, D]`, normal draws, one for each key head."""
    generator = torch.Generator().manual_seed(seed * 1009 + layer)
    return torch.randn(attention.kv_heads, attention.head_dim, generator=generator, dtype=torch.float64)


def _orthogonal(x: Tensor, axis: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """The unit vector of the part of x that is orthogonal to `axis`; of `otherwise` where x has none."""
    unit = axis / axis.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(axis.dtype).tiny)
    rest = x
    for _ in range(2):  # once more takes away what rounding left
        rest = rest - (rest * unit).sum(-1, keepdim=True) * unit
    norm = rest.norm(dim=-1, keepdim=True)
    if otherwise is not None:
        none = norm <= 8 * torch.finfo(x.dtype).eps * x.norm(dim=-1, keepdim=True)
        return torch.where(none, _orthogonal(otherwise, axis), rest / norm.clamp_min(1e-30))
    return rest / norm
