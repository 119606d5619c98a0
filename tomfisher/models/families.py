"""Where attention and MLP live in each architecture, and how it encodes positions: one entry per family."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tomfisher.models.structure import is_conv1d

Position = Literal["rope", "alibi", "learned", "none"]
Layout = Literal["half", "interleaved"]


class UnsupportedModel(NotImplementedError):
    """A model lacks what an analysis looks at, or nothing is known about where it keeps it."""


@dataclass(frozen=True)
class Family:
    """One entry of the table; the defaults are Llama's.

    Args:
        layers: the decoder's list of layers, under `model.get_decoder()`.
        attention: the attention module of a layer; None where the family has none. A layer without it (Jamba's
            Mamba layers) has no attention.
        qkv: the projections under it: three names, or one that makes q, k and v together.
        fused: order of the outputs where one projection makes all three: all of q, then k, then v
            ("concatenated"), or q, k, v of the first head, then of the next ("per-head").
        o: the output projection.
        mlp: modules of a layer that hold its MLP.
        position: how positions enter.
        layout: which dimensions of a head rotate together: "half" is (i, i + dim / 2), "interleaved" (2i, 2i + 1).
        interface: whether attention runs through transformers' attention interface.
    """

    layers: str = "layers"
    attention: str | None = "self_attn"
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    fused: Literal["concatenated", "per-head"] = "concatenated"
    o: str = "o_proj"
    mlp: tuple[str, ...] = ("mlp",)
    position: Position = "rope"
    layout: Layout = "half"
    interface: bool = True


FAMILIES: dict[str, Family] = {
    "llama": Family(),  # also SmolLM 1 and 2, Vicuna and the Llama distillations of DeepSeek
    "qwen2": Family(),  # also Qwen2.5 and the Qwen distillations of DeepSeek
    "qwen3": Family(),
    "mistral": Family(),
    "smollm3": Family(),
    "gemma3_text": Family(),
    "mixtral": Family(),
    "qwen2_moe": Family(),
    "qwen3_moe": Family(),
    "phi3": Family(qkv=("qkv_proj",)),
    "cohere": Family(layout="interleaved"),
    "glm": Family(layout="interleaved"),
    "gpt_neox": Family(attention="attention", qkv=("query_key_value",), fused="per-head", o="dense"),
    "opt": Family(o="out_proj", mlp=("fc1", "fc2"), position="learned"),
    "gpt2": Family(layers="h", attention="attn", qkv=("c_attn",), o="c_proj", position="learned"),
    "mpt": Family(
        layers="blocks",
        attention="attn",
        qkv=("Wqkv",),
        o="out_proj",
        mlp=("ffn",),
        position="alibi",
        interface=False,
    ),
    "jamba": Family(mlp=("feed_forward",), position="none"),
    "mamba": Family(attention=None, mlp=(), position="none"),
    "mamba2": Family(attention=None, mlp=(), position="none"),
}


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
class Rotary:
    """How a layer rotates its queries and keys.

    Args:
        layout: "half" or "interleaved".
        frequencies: float32 `[P]`, radians per token of each pair, with the family's scaling applied.
        attention_factor: what cosine and sine are multiplied by (YaRN, LongRoPE); 1 elsewhere.
        base: the base of the geometric sequence (rope_theta).
        scaling: "default", "llama3", "yarn", ...
    """

    layout: Layout
    frequencies: Tensor
    attention_factor: float
    base: float
    scaling: str

    @property
    def dim(self) -> int:
        """How many leading dimensions of a head are rotated."""
        return 2 * len(self.frequencies)

    @property
    def wavelengths(self) -> Tensor:
        """Float32 `[P]`, tokens that each pair takes for one turn."""
        return 2 * math.pi / self.frequencies

    @property
    def pairs(self) -> Tensor:
        """int64 `[P, 2]`, the two dimensions of a head that each frequency rotates."""
        dims = torch.arange(self.dim)
        return dims.view(-1, 2) if self.layout == "interleaved" else dims.view(2, -1).T


@dataclass(frozen=True)
class Attention:
    """The attention of one layer.

    Args:
        name: the module's name.
        module: the module.
        heads: number of query heads H.
        kv_heads: number of key and value heads; H is a multiple, and consecutive query heads share one.
        head_dim: dimensions of a head.
        q: where the queries' weights are, `[H, head_dim]`.
        k: where the keys' weights are, `[kv_heads, head_dim]`.
        v: where the values' weights are, `[kv_heads, head_dim]`.
        o: the inputs of the output projection, `[H, head_dim]`.
        rotary: None where this layer does not rotate.
    """

    name: str
    module: nn.Module
    heads: int
    kv_heads: int
    head_dim: int
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    rotary: Rotary | None


@dataclass(frozen=True)
class Layer:
    """One layer: its number, its module's name, its attention if it has one, its MLP's weights by name."""

    index: int
    name: str
    attention: Attention | None
    mlp: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """What is known about one model: its `model_type`, its family's entry, and its layers in order."""

    model_type: str
    family: Family
    layers: tuple[Layer, ...]

    @property
    def attention(self) -> dict[int, Attention]:
        """The layers that have attention, by number."""
        return {layer.index: layer.attention for layer in self.layers if layer.attention is not None}


def describe(model: Any) -> Architecture:
    """Say where a model keeps q, k, v, o and its MLP, and how it encodes positions.

    Args:
        model: a causal language model of transformers.

    Returns:
        An `Architecture`.

    Raises:
        UnsupportedModel: no family of that model type is known, its modules are not where its family has them, or
            its attention is not causal.
    """
    config = model.config.get_text_config(decoder=True)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedModel(
            f"Nothing is known about the attention of model type {config.model_type!r}. Known types: "
            f"{', '.join(sorted(FAMILIES))}. A new one is one entry in tomfisher.models.families.FAMILIES."
        )
    if getattr(config, "use_bidirectional_attention", False):
        raise UnsupportedModel(f"The attention of this {config.model_type} model is not causal.")
    names = {id(module): name for name, module in model.named_modules()}
    decoder = model.get_decoder()
    try:
        modules = decoder.get_submodule(family.layers)
        layers = [_layer(family, config, decoder, names, *item) for item in enumerate(modules)]
    except AttributeError as error:
        raise UnsupportedModel(
            f"{type(model).__name__} says it is {config.model_type}, but is built otherwise: {error}."
        ) from error
    return Architecture(config.model_type, family, tuple(layers))


def _layer(
    family: Family, config: Any, decoder: Any, names: dict[int, str], index: int, layer: nn.Module
) -> Layer:
    name = names[id(layer)]
    mlp = [
        f"{name}.{parameter}"
        for parameter, value in layer.named_parameters()
        if value.ndim > 1 and parameter.split(".")[0] in family.mlp
    ]
    module = getattr(layer, family.attention, None) if family.attention else None
    attention = None if module is None else _attention(family, config, decoder, names[id(module)], module)
    return Layer(index, name, attention, tuple(mlp))


def _attention(family: Family, config: Any, decoder: Any, name: str, module: nn.Module) -> Attention:
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    q, k, v = (
        _projection(module, name, *place)
        for place in zip(
            family.qkv * (3 // len(family.qkv)), _rows(family, heads, kv_heads, width), strict=True
        )
    )
    o = _projection(module, name, family.o, torch.arange(heads * width).view(heads, width), inputs=True)
    _check(module, family, (heads + 2 * kv_heads) * width)
    rotary = _rotary(family, config, decoder, module) if family.position == "rope" else None
    return Attention(name, module, heads, kv_heads, width, q, k, v, o, rotary)


def _rows(family: Family, heads: int, kv_heads: int, width: int) -> list[Tensor]:
    """Output positions `[heads, head_dim]` of q, k and v in the projections that make them."""
    counts = (heads, kv_heads, kv_heads)
    if len(family.qkv) == 3:
        return [torch.arange(n * width).view(n, width) for n in counts]
    whole = torch.arange(sum(counts) * width)
    if family.fused == "per-head":
        return list(whole.view(heads, 3, width).unbind(1))
    return [part.view(-1, width) for part in whole.split([n * width for n in counts])]


def _projection(module: nn.Module, name: str, child: str, index: Tensor, inputs: bool = False) -> Projection:
    axis = int(is_conv1d(module.get_submodule(child))) ^ int(inputs)
    return Projection(f"{name}.{child}.weight", axis, index)


def _check(module: nn.Module, family: Family, expected: int) -> None:
    """Refuse projections whose outputs are not as many as the config's heads need (packed weights have them too)."""
    found = 0
    for child in family.qkv:
        projection: Any = module.get_submodule(child)
        found += projection.nf if is_conv1d(projection) else projection.out_features
    if found != expected:
        raise UnsupportedModel(
            f"{', '.join(family.qkv)} have {found} outputs, where the heads of the config need {expected}."
        )


def _rotary(family: Family, config: Any, decoder: Any, module: Any) -> Rotary | None:
    if not getattr(module, "use_rope", True):
        return None
    embedding, settings, prefix = decoder.rotary_emb, config.rope_parameters, ""
    kind = getattr(module, "layer_type", None)
    if kind in settings:
        settings, prefix = settings[kind], f"{kind}_"
    return Rotary(
        layout=family.layout,
        frequencies=getattr(embedding, f"{prefix}inv_freq").detach().float().cpu(),
        attention_factor=float(getattr(embedding, f"{prefix}attention_scaling")),
        base=float(settings["rope_theta"]),
        scaling=str(settings["rope_type"]),
    )
