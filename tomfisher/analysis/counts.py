"""Where a mask's entries lie: layer, module, head, dimension of the head, rotary pair."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tomfisher.masks import SparseMask
from tomfisher.models.families import Architecture, Layer, Projection, Rotary
from tomfisher.runtime.structure import layer_index

Group = Literal["qk", "vo", "mlp", "mixer", "other"]
GROUPS: tuple[Group, ...] = ("qk", "vo", "mlp", "mixer", "other")
_GROUP_OF: dict[str, Group] = {"q": "qk", "k": "qk", "v": "vo", "o": "vo"}
_NUMBERS = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class PartCount:
    """The masked entries of one part of the model: a weight, or the q, k or v rows of a fused one.

    Attributes:
        layer: number of the layer; None outside the layers.
        kind: "q", "k", "v", "o", or the weight's name within its layer ("mlp.gate_proj", "mixer.in_proj").
        group: "qk", "vo", "mlp", "mixer" (what a layer without attention has in its place), or "other".
        tensor: the weight's name.
        masked: number of masked entries.
        weights: number of entries.
        units: int64 `[heads, head_dim]`, masked entries in the rows (of o: columns) of each dimension of each
            head; None for a part that has no heads.
        unit_weights: entries of one such row; 0 without heads.
        rotary: how the part is rotated (q and k), else None.
    """

    layer: int | None
    kind: str
    group: Group
    tensor: str
    masked: int
    weights: int
    units: Tensor | None = None
    unit_weights: int = 0
    rotary: Rotary | None = None

    @property
    def heads(self) -> Tensor | None:
        """Int64 `[heads]`, masked entries of each head (of k and v: each key and value head)."""
        return None if self.units is None else self.units.sum(1)

    @property
    def pairs(self) -> Tensor | None:
        """Int64 `[heads, P]`, masked entries in the two rows of each rotary pair; None where nothing rotates."""
        if self.units is None or self.rotary is None:
            return None
        return self.units[:, self.rotary.pairs].sum(-1)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the dimensions: heads and pairs as lists or None."""
        names = ("layer", "kind", "group", "tensor", "masked", "weights", "heads", "pairs")
        return {name: getattr(self, name) for name in names}


def count_parts(mask: SparseMask, architecture: Architecture | None = None) -> list[PartCount]:
    """Count a mask's entries part by part; the parts are disjoint and hold every tensor of the mask.

    Args:
        mask: any mask.
        architecture: of its model; None counts by the names of the weights alone: no heads, group "other".

    Returns:
        The parts, in the order of the mask's tensors.
    """
    layers = () if architecture is None else architecture.layers
    projections = {layer.index: _projections(layer) for layer in layers}
    parts: list[PartCount] = []
    for name in mask:
        layer = next((layer for layer in layers if name.startswith(f"{layer.name}.")), None)
        if layer is not None and name in projections[layer.index]:
            parts += _heads(mask, layer, projections[layer.index][name])
        else:
            parts.append(_whole(mask, name, layer))
    return parts


def rows_and_columns(index: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Row and column of flat positions in a matrix `[shape[0], ...]`, whose further axes are one."""
    width = torch.Size(shape[1:]).numel()
    return index // width, index % width


def _projections(layer: Layer) -> dict[str, list[tuple[str, Projection]]]:
    """The parts with heads of one layer, by the weight that holds them: one of three where q, k, v are fused."""
    by_weight: dict[str, list[tuple[str, Projection]]] = {}
    if layer.attention is not None:
        for kind in ("q", "k", "v", "o"):
            place = getattr(layer.attention, kind)
            if place is not None:
                by_weight.setdefault(place.parameter, []).append((kind, place))
    return by_weight


def _heads(mask: SparseMask, layer: Layer, places: list[tuple[str, Projection]]) -> Iterator[PartCount]:
    for kind, place in places:
        name, shape = place.parameter, mask.shapes[place.parameter]
        on_axis = rows_and_columns(mask[name], shape)[place.axis]
        units = torch.bincount(on_axis, minlength=shape[place.axis])[place.index]
        across = shape[1 - place.axis]
        rotary = layer.attention.rotary if layer.attention is not None and kind in ("q", "k") else None
        yield PartCount(
            layer=layer.index,
            kind=kind,
            group=_GROUP_OF[kind],
            tensor=name,
            masked=int(units.sum()),
            weights=place.index.numel() * across,
            units=units,
            unit_weights=across,
            rotary=rotary,
        )


def _whole(mask: SparseMask, name: str, layer: Layer | None) -> PartCount:
    size, count = torch.Size(mask.shapes[name]).numel(), mask[name].numel()
    if layer is None:
        return PartCount(layer_index(name), short_name(name), "other", name, count, size)
    group: Group = "other"
    if name in layer.mlp:
        group = "mlp"
    elif layer.attention is None and len(mask.shapes[name]) > 1:
        group = "mixer"
    return PartCount(layer.index, short_name(name), group, name, count, size)


def short_name(name: str) -> str:
    """A weight's name within its layer: "mlp.gate_proj"; further numbers (experts) become an asterisk."""
    number = layer_index(name)
    rest = name if number is None else f".{name}".partition(f".{number}.")[2] or name
    return _NUMBERS.sub("*", f".{rest}")[1:].removesuffix(".weight")
