"""Parts of a model's weights that a mask can be restricted to: W_Q and W_K, V and O, the MLP, frequency rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import permutations

import torch
from torch import Tensor

from tomfisher.analysis.rope import PARTS as QUERIES_AND_KEYS
from tomfisher.analysis.rope import LayerSpectrum, RopeSpectrum
from tomfisher.masks import SparseMask
from tomfisher.models.families import Architecture, Attention, Projection, UnsupportedModel
from tomfisher.near_miss import unknown

FULL, NOT = "full", "not-"
REGIONS = ("qk", "vo", "mlp", "mixer", "dominant-rows", "other-rows")
PARTS = (FULL, *REGIONS, *(f"{NOT}{region}" for region in REGIONS))
_ROWS = frozenset(("dominant-rows", "other-rows"))  # together they are "qk"
_ATOMS = _ROWS | {"vo", "mlp", "mixer", "rest"}
Positions = dict[str, tuple[int, Tensor] | None]  # per weight an axis and positions on it; None: all of it


def restrict(
    mask: SparseMask, architecture: Architecture | None, part: str, spectrum: RopeSpectrum | None = None
) -> SparseMask:
    """The entries of a mask that lie in one part of the model.

    "qk" is W_Q and W_K, "vo" W_V and W_O, "mlp" the MLP (experts too), "mixer" what a layer without attention has
    besides its MLP (state-space layers). "dominant-rows" are the rows of W_Q and W_K that make, in every head, the
    two dimensions of its dominant rotary pair; "other-rows" all their other rows. "not-X" is the mask without
    X, "full" the mask. A projection that makes q, k and v together is cut by rows.

    Args:
        mask: over weights of the model.
        architecture: `tomfisher.models.describe(model)`; None only for "full".
        part: one of `PARTS`.
        spectrum: of the untouched model; needed for the two kinds of rows.

    Returns:
        A mask that names the tensors of `mask`; those outside have no entry.

    Raises:
        ValueError: an unknown part, or no spectrum where one is needed.
        UnsupportedModel: the model has no such part.
    """
    if part not in PARTS:
        raise ValueError(unknown("part", part, PARTS))
    if part == FULL:
        return mask
    if architecture is None:
        raise UnsupportedModel(f"Where {part!r} lies is not known for this model. Only 'full' is.")
    region = part.removeprefix(NOT)
    positions = _positions(architecture, region, mask, spectrum)
    chosen = {
        name: _inside(mask[name], mask.shapes[name], positions[name]) for name in mask if name in positions
    }
    parents = [{"operation": "restrict", "part": region, "of": mask.describe()}]
    inside = SparseMask(chosen, mask.shapes, mask.kappa, mask.scope, parents)
    return mask - inside if part.startswith(NOT) else inside


def atoms(part: str) -> frozenset[str]:
    """A part of the mask as a set of pieces that share no weight, so that parts can be compared."""
    if part == FULL:
        return _ATOMS
    region = part.removeprefix(NOT)
    pieces = _ROWS if region == "qk" else frozenset((region,))
    return _ATOMS - pieces if part.startswith(NOT) else pieces


def nested(parts: Sequence[str]) -> bool:
    """Whether one of the parts contains another."""
    return any(atoms(one) <= atoms(other) for one, other in permutations(parts, 2))


def _inside(index: Tensor, shape: tuple[int, ...], chosen: tuple[int, Tensor] | None) -> Tensor:
    """Those of the flat positions whose coordinate on one axis is chosen."""
    if chosen is None:
        return index
    axis, positions = chosen
    coordinate = index.div(torch.Size(shape[axis + 1 :]).numel(), rounding_mode="floor") % shape[axis]
    return index[torch.isin(coordinate, positions)]


def _positions(
    architecture: Architecture, region: str, names: Iterable[str], spectrum: RopeSpectrum | None
) -> Positions:
    if region in ("mlp", "mixer"):
        return dict.fromkeys(_weights(architecture, region, names))
    layers = architecture.attending(repr(region)).values()
    if region in ("qk", "vo"):
        projections = [attention.projection(part) for attention in layers for part in region]  # type: ignore[arg-type]
        return _joined((projection, projection.index.flatten()) for projection in projections)
    architecture.rotating()
    if spectrum is None:
        raise ValueError(
            f"{region!r} needs to know which frequencies dominate: give the model's RopeSpectrum."
        )
    known = {layer.layer: layer for layer in spectrum.layers}
    return _joined(
        (projection, projection.index[dominant == (region == "dominant-rows")])
        for number, attention in architecture.attention.items()
        for projection, dominant in _dominant(attention, known.get(number))
    )


def _weights(architecture: Architecture, region: str, names: Iterable[str]) -> list[str]:
    """Weights of the MLPs, or among `names` the other ones of layers that have no attention."""
    if region == "mlp":
        weights = [name for layer in architecture.layers for name in layer.mlp]
    else:
        bare = [layer for layer in architecture.layers if layer.attention is None]
        weights = [n for n in names for x in bare if n.startswith(f"{x.name}.") and n not in x.mlp]
        if not bare:
            raise UnsupportedModel(
                f"Every layer of {architecture.model_type} has attention, so there is no mixer."
            )
    if not weights:
        raise UnsupportedModel(f"No weight of {architecture.model_type} belongs to its {region!r}.")
    return weights


def _dominant(attention: Attention, spectrum: LayerSpectrum | None) -> list[tuple[Projection, Tensor]]:
    """W_Q and W_K of a layer, each with a mask `[heads, head_dim]` of the dominant dimensions."""
    marked = []
    for part in QUERIES_AND_KEYS:
        projection = attention.projection(part)
        dominant = torch.zeros(projection.index.shape, dtype=torch.bool)
        if attention.rotary is not None and spectrum is not None:
            dominant.scatter_(1, attention.rotary.pairs[spectrum.dominant(part)], True)
        marked.append((projection, dominant))
    return marked


def _joined(parts: Iterable[tuple[Projection, Tensor]]) -> Positions:
    """Positions per weight; several projections may lie in one weight."""
    by_weight: dict[str, tuple[int, list[Tensor]]] = {}
    for projection, positions in parts:
        by_weight.setdefault(projection.parameter, (projection.axis, []))[1].append(positions)
    return {name: (axis, torch.cat(positions)) for name, (axis, positions) in by_weight.items()}
