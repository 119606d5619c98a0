"""How large the parts of a model are, as its config describes it: the weights need not be there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from tomfisher.fisher.selection import Params, select_parameters
from tomfisher.models.decoder import layer_lists
from tomfisher.runtime.memory import activation_bytes_per_token
from tomfisher.runtime.structure import is_conv1d, is_linear

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class LayerSizes:
    """A decoder layer, counted in entries.

    Attributes:
        parameters: all of them.
        selected: those whose squares are summed.
        experts: of the parameters, those of stacked experts.
        selected_experts: of the selected, those of stacked experts.
        active: of the selected, how many a token meets (fewer with experts).
        outputs: rows of its linear maps, of experts those that a token meets: what a token makes there.
        largest: the largest selected tensor.
    """

    parameters: int
    selected: int
    experts: int
    selected_experts: int
    active: float
    outputs: float
    largest: int


@dataclass(frozen=True)
class Sizes:
    """A model, counted in entries where nothing else is said.

    Attributes:
        layers: of the decoder, in order; those of all lists where a model has several.
        embedding: the table of input vectors.
        head: the output matrix; that of the embedding where they are tied.
        tied: whether they are.
        other: parameters outside the layers that are neither (norms, positions, encoders of other inputs).
        selected_outside: selected parameters outside the layers.
        hidden: width of the hidden state.
        vocabulary: rows of the output matrix.
        itemsize: bytes of a weight.
        chosen: experts that a token is sent to; 0 without experts.
        token_bytes: first guess of what is held per token between forward and backward, with which a batch on a GPU
            is begun (`activation_bytes_per_token`).
    """

    layers: tuple[LayerSizes, ...]
    embedding: int
    head: int
    tied: bool
    other: int
    selected_outside: int
    hidden: int
    vocabulary: int
    itemsize: int
    chosen: int
    token_bytes: int

    @cached_property
    def weights(self) -> int:
        """Selected entries."""
        return sum(layer.selected for layer in self.layers) + self.selected_outside

    @cached_property
    def active(self) -> float:
        """Of the selected entries, how many a token meets."""
        return sum(layer.active for layer in self.layers) + self.selected_outside

    @cached_property
    def outside(self) -> int:
        """Parameters outside the layers, tied ones once."""
        return self.embedding + self.other + (0 if self.tied else self.head)

    @cached_property
    def parameters(self) -> int:
        """All of them."""
        return sum(layer.parameters for layer in self.layers) + self.outside

    @property
    def model_bytes(self) -> int:
        """Of all parameters."""
        return self.itemsize * self.parameters

    @property
    def fisher_bytes(self) -> int:
        """Of the float32 sums."""
        return 4 * self.weights

    @property
    def widest(self) -> LayerSizes:
        """The layer whose weights and sums take most."""
        return max(self.layers, key=lambda layer: self.itemsize * layer.parameters + 4 * layer.selected)

    @property
    def expert_layers(self) -> int:
        """Layers with stacked experts."""
        return sum(1 for layer in self.layers if layer.experts)


def sizes_of(
    model: nn.Module, params: Params = "decoder-linear", dtype: torch.dtype = torch.bfloat16
) -> Sizes:
    """The sizes of a model, whose weights need not be there (device meta).

    Args:
        model: a causal language model of transformers.
        params: as `fisher_diagonal` takes them.
        dtype: that its weights shall have.
    """
    config: Any = getattr(model.config, "get_text_config", lambda: model.config)()
    selected = select_parameters(model, params)
    chosen, share = _routing(config)
    layers = tuple(_layer(layer, selected, share) for layer in _layers(model))
    embedding, head = (_table(model, which) for which in ("input", "output"))
    tied = embedding is not None and embedding is head
    tables = (0 if embedding is None else embedding.numel(), 0 if head is None else head.numel())
    parameters = sum(p.numel() for p in model.parameters()) - sum(layer.parameters for layer in layers)
    return Sizes(
        layers=layers,
        embedding=tables[0],
        head=tables[1],
        tied=tied,
        other=parameters - tables[0] - (0 if tied else tables[1]),
        selected_outside=sum(p.numel() for p in selected.values()) - sum(layer.selected for layer in layers),
        hidden=int(getattr(config, "hidden_size", 1)),
        vocabulary=int(config.vocab_size),
        itemsize=dtype.itemsize,
        chosen=chosen,
        token_bytes=activation_bytes_per_token(model)
        * dtype.itemsize
        // next(model.parameters()).element_size(),
    )


def _routing(config: Any) -> tuple[int, float]:
    """How many experts a token is sent to, and which part of all that is; 0 and all of it without experts."""
    experts = next((n for name in _EXPERTS if isinstance(n := getattr(config, name, None), int)), 0)
    chosen = getattr(config, "num_experts_per_tok", None) or experts
    return (min(chosen, experts), min(1.0, chosen / experts)) if experts else (0, 1.0)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The decoder's layers; of a decoder without a list of them, the whole base model as one."""
    lists = layer_lists(model)
    for layers in lists.values():
        yield from layers.children()
    if not lists:
        yield getattr(model, "base_model", model)


def _table(model: Any, which: str) -> nn.Parameter | None:
    """The matrix of the input or output embeddings, if the model names one."""
    module = getattr(model, f"get_{which}_embeddings", lambda: None)()
    return getattr(module, "weight", None)


def _layer(layer: nn.Module, selected: dict[str, nn.Parameter], share: float) -> LayerSizes:
    own = {id(p): p for p in layer.parameters()}
    chosen = {name: p for name, p in selected.items() if id(p) in own}
    stacked = [p for p in chosen.values() if p.ndim == 3]
    inside = sum(p.numel() for p in stacked)
    total = sum(p.numel() for p in chosen.values())
    return LayerSizes(
        parameters=sum(p.numel() for p in own.values()),
        selected=total,
        experts=sum(p.numel() for p in own.values() if p.ndim == 3),
        selected_experts=inside,
        active=total - inside + inside * share,
        outputs=_outputs(layer, share),
        largest=max((p.numel() for p in chosen.values()), default=0),
    )


def _outputs(layer: nn.Module, share: float) -> float:
    """Rows of the linear maps: `d_out` of each, of stacked experts `[E, d_out, d_in]` share · E · d_out."""
    rows = 0.0
    for module in layer.modules():
        for parameter in module._parameters.values():
            if parameter is None or parameter.ndim < 2:
                continue
            if parameter.ndim == 3:
                rows += share * parameter.shape[0] * parameter.shape[2 if _transposed(module) else 1]
            elif is_linear(module):
                rows += parameter.shape[1 if is_conv1d(module) else 0]
    return rows


def _transposed(module: nn.Module) -> bool:
    return bool(getattr(module, "is_transposed", False))
