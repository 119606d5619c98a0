"""Where attention and MLP live in a model, and how it encodes positions: asked of the model itself."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tomfisher.models.decoder import layer_lists, text_decoder
from tomfisher.models.mlp import mlp_weights
from tomfisher.models.probe import Made, Probed, probe
from tomfisher.models.rotary import Rotary, find_rotary, turns
from tomfisher.models.weights_check import NOT_CAUSAL
from tomfisher.runtime.gate import check_in_memory
from tomfisher.runtime.structure import is_conv1d
from tomfisher.runtime.torch_state import plain_torch

__all__ = ["Architecture", "Attention", "Layer", "Projection", "Rotary", "UnsupportedModel", "describe"]
Position = Literal["rope", "alibi", "relative", "learned", "sinusoidal", "none", "unknown"]
Part = Literal["q", "k", "v", "o"]


class UnsupportedModel(NotImplementedError):
    """A model lacks what an analysis looks at, or nothing is known about where it keeps it."""


@dataclass(frozen=True)
class Projection:
    """Which rows (or columns) of a weight belong to which head.

    Args:
        parameter: the weight's name in `model.named_parameters()`.
        axis: the weight's axis that the heads lie on.
        index: int64 `[heads, head_dim]`, position on that axis of each dimension of each head.
    """

    parameter: str
    axis: int
    index: Tensor


@dataclass(frozen=True)
class Attention:
    """The attention of one layer.

    Args:
        name: the module's name.
        module: the module.
        heads: number of query heads H.
        kv_heads: number of key and value heads; H is a multiple, and consecutive query heads share one.
        head_dim: dimensions of a head's queries and keys.
        q: where the queries' weights are, `[H, head_dim]`; None where `lacks["q"]` says why they are not known.
        k: where the keys' weights are, `[kv_heads, head_dim]`.
        v: where the values' weights are, `[kv_heads, dimensions of a value]`.
        o: the inputs of the output projection, `[H, dimensions of a value]`.
        rotary: None where this layer does not rotate, or where `lacks["rotary"]` says what is not known.
        interface: whether it runs through transformers' attention interface.
        scale: factor of the scores, where the module's own code has it; through the interface the call says it.
        repeats: how many times in a row each key head arrives at the attention.
        lacks: "q", "k", "v", "o", "rotary", "weights": in words, what is not known of this layer.
    """

    name: str
    module: nn.Module
    heads: int
    kv_heads: int
    head_dim: int
    q: Projection | None
    k: Projection | None
    v: Projection | None
    o: Projection | None
    rotary: Rotary | None
    interface: bool = True
    scale: float | None = None
    repeats: int = 1
    lacks: dict[str, str] = field(default_factory=dict)

    def projection(self, part: Part) -> Projection:
        """Where the weights of q, k, v or o are.

        Raises:
            UnsupportedModel: it is not known.
        """
        place: Projection | None = getattr(self, part)
        if place is None:
            raise UnsupportedModel(self.lacks[part])
        return place


@dataclass(frozen=True)
class Layer:
    """One layer: its number, its module's name, its attention if it has one, its MLP's weights by name."""

    index: int
    name: str
    attention: Attention | None
    mlp: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """What is known about one model.

    Args:
        model_type: of its text decoder's config.
        position: how positions enter.
        layers: in order.
        unseen: where no layer was seen to attend, the classes of modules that call themselves attention.
    """

    model_type: str
    position: Position
    layers: tuple[Layer, ...]
    unseen: tuple[str, ...] = ()

    @property
    def attention(self) -> dict[int, Attention]:
        """The layers that have attention, by number."""
        return {layer.index: layer.attention for layer in self.layers if layer.attention is not None}

    @property
    def interface(self) -> bool:
        """Whether all attention runs through transformers' attention interface."""
        return all(attention.interface for attention in self.attention.values())

    def attending(self, what: str) -> dict[int, Attention]:
        """The layers that have attention, by number.

        Args:
            what: is asked for, for the error: "sink".

        Raises:
            UnsupportedModel: there are none.
        """
        if self.unseen:
            raise UnsupportedModel(
                f"No softmax of products of queries and keys was seen in {self.model_type} "
                f"({', '.join(self.unseen)}), so there is no {what}."
            )
        if not self.attention:
            raise UnsupportedModel(f"{self.model_type} has no attention layer, so there is no {what}.")
        return self.attention

    @property
    def rotates(self) -> bool:
        """Whether some layer rotates queries and keys, and it is known of all layers how."""
        layers = self.attention.values()
        return any(a.rotary is not None for a in layers) and not any("rotary" in a.lacks for a in layers)

    def rotating(self) -> dict[int, Attention]:
        """The layers that rotate queries and keys, by number.

        Raises:
            UnsupportedModel: there are none, or the rotation of a layer is not known.
        """
        for attention in self.attention.values():
            if "rotary" in attention.lacks:
                raise UnsupportedModel(attention.lacks["rotary"])
        layers = {index: a for index, a in self.attention.items() if a.rotary is not None}
        if not layers:
            raise UnsupportedModel(
                f"{self.model_type} has no rotary embedding, so it has no frequencies (positions: {self.position})."
            )
        return layers


@plain_torch()
def describe(model: Any) -> Architecture:
    """Say where a model keeps q, k, v, o and its MLP, and how it encodes positions.

    Nothing is taken from a list of names: a forward pass on a few tokens, whose projections give out code words, shows
    which of their outputs reach attention as which dimension of which head, how these are turned from position to
    position, and whether the attention weights are the softmax of what arrives (`tomfisher.models.probe`). The answer
    is kept for as long as model and module tree stay as they are; the model is left as it was.

    Args:
        model: a causal language model of transformers.

    Returns:
        An `Architecture`; what is not known of a layer stands in the `lacks` of its attention.

    Raises:
        UnsupportedModel: the model's layers are not found, it does not run on token ids alone, or its attention is
            not causal or not one to a layer.
        ValueError: weights of the model are still in their files.
    """
    check_in_memory(model)
    signature = _signature(model)
    known = _KNOWN.get(model)
    if known is None or known[0] != signature:
        known = _KNOWN[model] = (signature, _ask(model))
    return known[1]


_KNOWN: weakref.WeakKeyDictionary[Any, tuple[Any, Architecture]] = weakref.WeakKeyDictionary()


def _signature(model: Any) -> Any:
    """What the answer depends on, as far as it can be seen without running: modules, their settings, shapes."""
    simple = (bool, int, float, str, type(None))
    implementation = getattr(model.config, "_attn_implementation", None)
    modules = hash(
        tuple(
            (
                name,
                id(module),
                type(module),
                tuple((k, v) for k, v in vars(module).items() if k != "training" and isinstance(v, simple)),
                tuple((k, p.shape, p.dtype) for k, p in module._parameters.items() if p is not None),
                tuple((k, id(b)) for k, b in module._buffers.items()),
            )
            for name, module in model.named_modules()
        )
    )
    return implementation, modules


def _ask(model: Any) -> Architecture:
    config = model.config.get_text_config(decoder=True)
    kind = config.model_type
    decoder = text_decoder(model)
    count = getattr(config, "num_hidden_layers", None)
    lists = [list(layers.children()) for layers in layer_lists(model).values()]
    lists = [layers for layers in lists if len(layers) == count] or lists
    if not lists:
        raise UnsupportedModel(f"{type(model).__name__} ({kind}) has no list of layers in its text decoder.")
    try:
        layers, probed, positions = probe(model, decoder, lists)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UnsupportedModel(
            f"{type(model).__name__} ({kind}) does not run on a few token ids alone: {type(error).__name__}: {error}"
        ) from error
    names = {id(module): name for name, module in model.named_modules()}
    by_layer = _by_layer(kind, layers, names, probed)
    described = []
    for index, layer in enumerate(layers):
        seen = by_layer[index]
        attention = None if seen is None else _attention(model, config, names, index, seen)
        mlp = mlp_weights(layer, names[id(layer)], None if seen is None else seen.module)
        described.append(Layer(index, names[id(layer)], attention, mlp))
    unseen = () if probed else tuple(sorted(_named_attention(layers)))
    position = "unknown" if unseen else _position(model, probed, described, positions)
    return Architecture(kind, position, tuple(described), unseen)


def _named_attention(layers: list[nn.Module]) -> set[str]:
    """Classes in the layers that have attention in their name."""
    kinds = {type(module).__name__ for layer in layers for module in layer.modules()}
    return {kind for kind in kinds if "attention" in kind.lower()}


def _by_layer(
    kind: str, layers: list[nn.Module], names: dict[int, str], probed: list[Probed]
) -> list[Probed | None]:
    """The attention of each layer; refuses what is not one call to a layer, or not causal."""
    by_layer: list[Probed | None] = []
    left = {id(p.module): p for p in probed}
    for p in probed:
        if p.wrong == NOT_CAUSAL:
            raise UnsupportedModel(f"The attention of this {kind} model is not causal.")
        if p.calls > 1:
            raise UnsupportedModel(
                f"{names[id(p.module)]} of this {kind} model computes attention {p.calls} times in one forward pass."
            )
    for index, layer in enumerate(layers):
        here = [left.pop(id(m)) for m in layer.modules() if id(m) in left]
        if len(here) > 1:
            raise UnsupportedModel(
                f"Layer {index} of this {kind} model has {len(here)} attentions: "
                f"{', '.join(names[id(p.module)] for p in here)}."
            )
        by_layer.append(here[0] if here else None)
    if left:
        outside = ", ".join(names[key] for key in left)
        raise UnsupportedModel(f"This {kind} model has attention outside its layers: {outside}.")
    return by_layer


def _attention(model: Any, config: Any, names: dict[int, str], index: int, seen: Probed) -> Attention:
    assert seen.query is not None and seen.key is not None
    heads, width = seen.query.shape[1], seen.query.shape[3]
    places: dict[str, Projection | None] = {}
    lacks: dict[str, str] = {}
    for part in ("q", "k", "v"):
        places[part] = _place(names, seen.made[part])
        if places[part] is None:
            lacks[part] = _why(index, part, names, seen.made[part])
    groups = 1 if places["k"] is None else _repeats(places["k"].index)
    if groups > 1:
        for part in ("k", "v"):
            place = places[part]
            if place is not None:
                places[part] = Projection(place.parameter, place.axis, place.index[::groups])
    o = None if seen.output is None else _place(names, [seen.output], inputs=True)
    if o is None:
        lacks["o"] = f"No weight of layer {index} was seen to take in what its attention gives."
    rotary = None
    if seen.key.shape[2] != seen.query.shape[2]:
        lacks["rotary"] = f"The attention of layer {index} {seen.wrong}."
    elif turns(seen.query) or turns(seen.key):
        told = seen.even or bool(seen.made["q"] and seen.made["k"])
        rotary = find_rotary(model, config, seen.module, [seen.query, seen.key]) if told else None
        if rotary is None:
            lacks["rotary"] = _unturned(index, seen)
    if seen.wrong is not None:
        lacks["weights"] = f"The attention of layer {index} ({type(seen.module).__name__}) {seen.wrong}."
    return Attention(
        names[id(seen.module)],
        seen.module,
        heads,
        seen.key.shape[1] // groups,
        width,
        places["q"],
        places["k"],
        places["v"],
        o,
        rotary,
        seen.interface,
        seen.scale,
        groups,
        lacks,
    )


def _place(names: dict[int, str], made: list[Made], inputs: bool = False) -> Projection | None:
    """The weight that makes a part alone; None where several do, or none."""
    if len(made) != 1:
        return None
    module, index = made[0]
    axis = int(is_conv1d(module)) ^ int(inputs)
    return Projection(f"{names[id(module)]}.weight", axis, index)


def _repeats(index: Tensor) -> int:
    """How many heads in a row are made by the same outputs."""
    heads = index.shape[0]
    for groups in range(heads, 1, -1):
        if heads % groups == 0 and torch.equal(index[::groups].repeat_interleave(groups, dim=0), index):
            return groups
    return 1


_WORDS = {"q": "queries", "k": "keys", "v": "values"}


def _why(index: int, part: str, names: dict[int, str], made: list[Made]) -> str:
    """Why the weights of a part are not one projection."""
    if not made:
        return (
            f"The {_WORDS[part]} of layer {index} are not the outputs of linear maps in its attention module."
        )
    several = " and ".join(names[id(module)] for module, _ in made)
    return f"The {_WORDS[part]} of layer {index} are made by several weights: {several}."


def _unturned(index: int, seen: Probed) -> str:
    """Why nothing is known of a layer's rotation."""
    if seen.made["q"] and seen.made["k"]:
        return (
            f"Queries and keys of layer {index} depend on their position, but not by a rotation with frequencies that "
            "the model or its config names."
        )
    part = "q" if not seen.made["q"] else "k"
    return f"{_why(index, part, {}, [])[:-1]}, so how they are rotated cannot be determined."


def _position(model: Any, probed: list[Probed], layers: list[Layer], embedded: bool) -> Position:
    if any(layer.attention is not None and layer.attention.rotary is not None for layer in layers):
        return "rope"
    for p in probed:
        if p.added is not None:
            return p.added
    if any(layer.attention is not None and "rotary" in layer.attention.lacks for layer in layers):
        return "unknown"
    if not embedded:
        return "none"
    trained = any(
        p.requires_grad and ("pos" in name or "wpe" in name) for name, p in model.named_parameters()
    )
    return "learned" if trained else "sinusoidal"
