"""The linear maps of a text decoder: which parameters its layers multiply vectors by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tomfisher.fisher.experts import PROJECTIONS, is_experts
from tomfisher.fisher.products import Products
from tomfisher.models.decoder import layer_lists, text_decoder
from tomfisher.models.fixed import fixed_parameters
from tomfisher.runtime.device import device_of
from tomfisher.runtime.forward import logits_at, ordinary_ids
from tomfisher.runtime.modes import frozen
from tomfisher.runtime.positions import position_limit
from tomfisher.runtime.structure import Owner, is_linear, owners_of

_ROWS, _TOKENS = 2, 32  # of the short forward; rows, lest a table of positions has the shape of the vectors
_NO_MAPS = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.modules.conv._ConvNd,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
)


@dataclass(frozen=True)
class LinearMaps:
    """What the layers of a text decoder hold.

    Attributes:
        weights: of the linear maps, by name, in model order.
        unseen: parameters of two dimensions or more of which nothing is known, since no module tells what they are
            and the short forward did not use them.
    """

    weights: dict[str, nn.Parameter]
    unseen: dict[str, nn.Parameter]


def decoder_linear_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of every linear map in the layers of the text decoder, whatever holds them.

    Where the layers are is read off the model (`tomfisher.models.decoder.layer_lists`). What is a linear map follows
    from the module, where it is an `nn.Linear`, a `Conv1D` or of a class derived from them, or fused experts that
    describe themselves; embeddings, convolutions and norms are none. Where a linear layer computes its weight from
    other parameters (`torch.nn.utils.parametrizations`, `weight_norm`, pruning), the one of the weight's shape stands
    for it. Of any other parameter of two dimensions or more (routers, experts stacked in two dimensions or three,
    low-rank mixers) the model is asked: it is a linear map if in a forward of a few tokens it, a view or copy of it,
    or all of it scaled or shifted, is multiplied as a matrix by something that comes from the input. One attribute of
    one class is one thing everywhere, so an expert that no token was sent to is what its siblings are. Where a model
    has several lists of layers (an image encoder inside the decoder), those that the forward runs count.

    Args:
        model: a transformers causal language model. It is run only if something has to be asked.

    Returns:
        Name to parameter, in model order; a tied parameter appears once, under its first name.

    Raises:
        ValueError: a part of the model is TorchScript.
    """
    return linear_maps(model).weights


def linear_maps(model: nn.Module) -> LinearMaps:
    """`decoder_linear_weights`, and the parameters beside them of which nothing is known.

    Args:
        model: as in `decoder_linear_weights`. One on the device meta cannot be run: what would have to be asked of it
            counts as a linear map.

    Raises:
        ValueError: a part of the model is TorchScript.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name or 'The model'} is TorchScript ({type(module).__name__}), whose forward cannot be watched. "
                "Put the module there that it was made from."
            )
    lists = layer_lists(model)
    held = _held(model, _modules(model, lists.values()))
    known = {name: _known(model, owner) for name, owner in held.items()}
    asked = [name for name, verdict in known.items() if verdict is None]
    unseen: set[str] = set()
    if device_of(model).type == "meta":
        known.update(dict.fromkeys(asked, True))
    elif asked or len(lists) > 1:
        certain = [_parameter(held[name]) for name, verdict in known.items() if verdict]
        products, ran = _short_forward(model, [_parameter(held[name]) for name in asked], certain)
        if len(lists) > 1:
            lists = {name: layers for name, layers in lists.items() if not ran.isdisjoint(layers.modules())}
            held = _held(model, _modules(model, lists.values()))
        kinds = {n: _kind(model, held[n]) for n in asked if n in held}
        maps = {kind for n, kind in kinds.items() if id(_parameter(held[n])) in products.maps}
        used = {kind for n, kind in kinds.items() if id(_parameter(held[n])) in products.used}
        known.update({n: kind in maps for n, kind in kinds.items()})
        unseen = {n for n, kind in kinds.items() if kind not in used}
    for name in fixed_parameters(model):
        held.pop(name, None)
    return LinearMaps(
        {name: _parameter(owner) for name, owner in held.items() if known[name]},
        {name: _parameter(owner) for name, owner in held.items() if name in unseen},
    )


@dataclass(frozen=True)
class Coverage:
    """How much of the decoder's linear maps a Fisher run covers, in weights (numbers, not tensors).

    Attributes:
        weights: of the linear maps in the decoder's layers.
        captured: of those, how many are captured in batches.
        fallback: how many are left to autograd, one sample at a time.
        missing: names of the decoder's linear maps that are not selected, and of parameters that are not and may be
            such (`LinearMaps.unseen`); they count as weights.
    """

    weights: int
    captured: int
    fallback: int
    missing: list[str]

    @property
    def share(self) -> float:
        """Part of the weights that is selected, 0 to 1; 1 where there are none."""
        return (self.captured + self.fallback) / self.weights if self.weights else 1.0

    def to_dict(self) -> dict[str, Any]:
        """As a record holds it."""
        return {
            "decoder_linear_weights": self.weights,
            "captured": self.captured,
            "fallback": self.fallback,
            "share": self.share,
            "missing": self.missing,
        }


def coverage(maps: LinearMaps, methods: Mapping[str, str]) -> Coverage:
    """Count how a run covers the decoder's linear maps.

    Args:
        maps: from `linear_maps`.
        methods: `FisherDiagonal.methods` or `FisherPlan.methods`.
    """
    linear = {**maps.weights, **maps.unseen}
    captured = sum(p.numel() for name, p in linear.items() if methods.get(name) == "captured")
    covered = sum(p.numel() for name, p in linear.items() if name in methods)
    return Coverage(
        weights=sum(p.numel() for p in linear.values()),
        captured=captured,
        fallback=covered - captured,
        missing=[name for name in linear if name not in methods],
    )


def _modules(model: nn.Module, lists: Iterable[nn.Module]) -> set[nn.Module]:
    """The modules of the layers; of a decoder without a list of layers all but its embeddings and its head."""
    inside = {module for layers in lists for module in layers.modules()}
    if inside:
        return inside
    heads = (getattr(model, f"get_{which}_embeddings", lambda: None)() for which in ("input", "output"))
    outside = {module for head in heads if head is not None for module in head.modules()}
    return set(text_decoder(model).modules()) - outside


def _held(model: nn.Module, modules: set[nn.Module]) -> dict[str, Owner]:
    """Parameters that one of the modules holds, by their first name, with the place where it does."""
    owners = owners_of(model)
    held = {}
    for name, parameter in model.named_parameters():
        place = next((owner for owner in owners[id(parameter)] if owner.module in modules), None)
        if place is not None:
            held[name] = place
    return held


def _known(model: nn.Module, owner: Owner) -> bool | None:
    """Whether the parameter is a linear map, as far as its module tells; None where the model has to be asked."""
    module, attribute = owner.module, owner.attribute
    dimensions = _parameter(owner).ndim
    if dimensions < 2 or isinstance(module, _NO_MAPS):
        return False
    if is_experts(module):
        return True if attribute in PROJECTIONS else False if attribute.endswith("_bias") else None
    linear = _parametrized(model, owner)
    if not is_linear(linear):
        return None
    # a weight that the layer computes is no parameter: that of its shape stands for it
    stands = attribute == "weight" or "weight" not in linear._parameters
    weight = getattr(linear, "weight", None) if stands and dimensions == 2 else None
    return True if weight is not None and _parameter(owner).shape == weight.shape else None


def _parametrized(model: nn.Module, owner: Owner) -> nn.Module:
    """The module that computes its weight from the parameter, if torch's parametrizations do; else the owner."""
    name, _, tensor = owner.module_name.rpartition(".parametrizations.")
    holds = isinstance(owner.module, nn.utils.parametrize.ParametrizationList) and tensor == "weight"
    return model.get_submodule(name) if holds else owner.module


def _kind(model: nn.Module, owner: Owner) -> tuple[type[nn.Module], str]:
    """The class that holds the parameter, and under which attribute; of an entry of a list, where the list is."""
    if isinstance(owner.module, nn.ParameterList | nn.ParameterDict):
        parent, _, attribute = owner.module_name.rpartition(".")
        return type(model.get_submodule(parent)), attribute
    if isinstance(owner.module, nn.utils.parametrize.ParametrizationList):
        parent, _, attribute = owner.module_name.rpartition(".parametrizations.")
        return type(model.get_submodule(parent)), f"{attribute}.{owner.attribute}"
    return type(owner.module), owner.attribute


def _parameter(owner: Owner) -> nn.Parameter:
    parameter = owner.module._parameters[owner.attribute]
    assert parameter is not None
    return parameter


def _short_forward(
    model: nn.Module, asked: list[nn.Parameter], certain: list[nn.Parameter]
) -> tuple[Products, set[nn.Module]]:
    """What the parameters are used for, and which modules ran."""
    ran: set[nn.Module] = set()
    products = Products(asked, certain)
    length = position_limit(model)
    ids = _spread_ids(model, min(_TOKENS, length or _TOKENS)).to(device_of(model))
    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(lambda module, args: ran.add(module)).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(products)
        logits_at(model, ids, torch.arange(ids.shape[1], device=ids.device))
    return products, ran


def _spread_ids(model: nn.Module, length: int) -> torch.Tensor:
    """Ordinary token ids `[2, length]` from the whole vocabulary."""
    ids = torch.tensor(ordinary_ids(model))
    at = torch.linspace(0, len(ids) - 1, _ROWS * length).long()
    return ids[at].view(_ROWS, length)
