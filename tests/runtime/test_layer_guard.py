"""Layers that see each other through what no argument and no module shows are refused before any weight is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from resident import Resident
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from tiny_models import random_model
from tomfisher.runtime.boundaries import Boundaries
from tomfisher.runtime.layer_calls import UnsupportedLayers
from tomfisher.runtime.layer_guard import examine_layers
from tomfisher.runtime.layerwise import Layers

LEFT: dict[str, Any] = {}
Change = Callable[[nn.Module, Tensor], Tensor]


class Around(nn.Module):
    """A layer whose output goes through a function that knows more than it is given."""

    def __init__(self, layer: nn.Module, change: Change) -> None:
        super().__init__()
        self.layer, self.change = layer, change

    def forward(self, hidden: Tensor, **kwargs: Any) -> Tensor:
        return self.change(self.layer, self.layer(hidden, **kwargs))


def model_with(changes: dict[int, Change]) -> Any:
    """A Llama some of whose layers do something more."""
    model = random_model("llama-gqa", noise=0.05)
    for number, change in changes.items():
        model.model.layers[number] = Around(model.model.layers[number], change)
    LEFT.clear()
    return model


def examined(model: Any, gradients: bool = True) -> Layers:
    layers = Layers(Resident(model), Boundaries())
    examine_layers(layers, gradients)
    return layers


def leave(value: Callable[[nn.Module, Tensor], Any]) -> Change:
    def change(layer: nn.Module, output: Tensor) -> Tensor:
        LEFT["value"] = value(layer, output)
        return output

    return change


def take(layer: nn.Module, output: Tensor) -> Tensor:
    return output + LEFT.get("value", 0)


def exchange(layer: nn.Module, output: Tensor) -> Tensor:
    output = take(layer, output)
    LEFT["value"] = output.mean(1, keepdim=True).detach()
    return output


class Scaled(torch.autograd.Function):
    """Identity whose gradient is scaled by what another layer has left."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * (1 + LEFT["value"])


def mean(layer: nn.Module, output: Tensor) -> Tensor:
    return output.mean(1, keepdim=True)


HIDDEN = "layer [01] .* makes something else of a short text when other texts go through the layers"


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({0: leave(lambda layer, x: float(x.detach().mean())), 1: take}, id="a number"),
        pytest.param({0: leave(lambda layer, x: mean(layer, x.detach())), 1: take}, id="a tensor"),
        pytest.param({0: leave(mean), 1: take}, id="a tensor with its graph"),
        pytest.param({0: exchange, 1: exchange}, id="both ways"),
    ],
)
def test_what_one_layer_leaves_for_another_is_seen(changes: dict[int, Change], gradients: bool) -> None:
    with pytest.raises(UnsupportedLayers, match=HIDDEN):
        examined(model_with(changes), gradients)


def test_a_gradient_that_another_layer_changes_is_seen() -> None:
    changes = {0: leave(lambda layer, x: float(x.detach().mean())), 1: lambda layer, x: Scaled.apply(x)}
    examined(model_with(changes), gradients=False)
    with pytest.raises(
        UnsupportedLayers, match=r"another gradient enters layer 0 from above|the gradient of "
    ):
        examined(model_with(changes))


def test_a_weight_that_another_layer_reads_too_is_seen() -> None:
    def read(layer: nn.Module, output: Tensor) -> Tensor:
        return output + output @ LEFT["value"].self_attn.q_proj.weight.mT

    with pytest.raises(
        UnsupportedLayers, match=r"the gradient of model\.layers\.0\.layer\.self_attn\.q_proj\.weight"
    ):
        examined(model_with({0: leave(lambda layer, x: layer), 1: read}))


def test_what_every_text_finds_the_same_is_no_reason() -> None:
    model = model_with({1: take})
    LEFT["value"] = 0.5
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    layers = examined(model)
    assert layers.passes == 0  # and no layer was asked for
    assert layers.opened.asked == []
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


class Several(nn.Module):
    """A layer that hands on something beside the hidden states."""

    def __init__(self, layer: nn.Module, beside: Callable[[Tensor], tuple[Any, ...]]) -> None:
        super().__init__()
        self.layer, self.beside = layer, beside

    def forward(self, hidden: Tensor, beside: Any = None, **kwargs: Any) -> tuple[Any, ...]:
        output = self.layer(hidden if beside is None else hidden + beside, **kwargs)
        return (output, *self.beside(output))


class Apart(nn.Module):
    """A decoder that takes apart what its layers hand on, and may give a layer the second entry of the one before."""

    def __init__(self, decoder: Any, beside: Callable[[Tensor], tuple[Any, ...]], passed_on: bool) -> None:
        super().__init__()
        self.embed_tokens, self.norm, self.rotary_emb = decoder.embed_tokens, decoder.norm, decoder.rotary_emb
        self.layers = nn.ModuleList(Several(layer, beside) for layer in decoder.layers)
        self.passed_on = passed_on

    def forward(self, input_ids: Tensor, **kwargs: Any) -> BaseModelOutputWithPast:
        hidden, beside = self.embed_tokens(input_ids), None
        tables = self.rotary_emb(hidden, torch.arange(input_ids.shape[1])[None])
        for layer in self.layers:
            hidden, beside, _ = layer(
                hidden,
                beside=beside if self.passed_on else None,
                position_embeddings=tables,
                attention_mask=None,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


def taking_apart(beside: Callable[[Tensor], tuple[Any, ...]], passed_on: bool = False) -> Any:
    """A Llama with such a decoder."""
    model: Any = random_model("llama-gqa", noise=0.05)
    model.model = Apart(model.model, beside, passed_on)
    return model


@pytest.mark.parametrize("beside", [lambda x: (None, None), lambda x: (x.mean(), [x.argmax()])])
def test_entries_beside_the_hidden_states_that_no_layer_gets_are_no_reason(
    beside: Callable[[Tensor], tuple[Any, ...]],
) -> None:
    layers = examined(taking_apart(beside))
    ids = torch.arange(3, 12)[None]
    expected = layers.model(input_ids=ids).logits
    with torch.no_grad():
        with layers.recording() as calls:
            layers.model(input_ids=ids)
        layers.forward(calls)
        with layers.answering(calls):
            assert torch.equal(layers.model(input_ids=ids).logits, expected)


def test_an_entry_that_the_next_layer_gets_is_seen() -> None:
    with pytest.raises(
        UnsupportedLayers, match="layer 1 also gets something that an earlier layer hands on beside"
    ):
        examined(taking_apart(lambda x: (x.argmax(-1, keepdim=True), None), passed_on=True))


def test_an_entry_that_is_there_for_some_texts_only_is_seen() -> None:
    layers = examined(taking_apart(lambda x: (None, x.mean() if x.shape[1] > 8 else None)))
    with layers.recording() as calls, torch.no_grad():
        layers.model(input_ids=torch.arange(3, 12)[None])
    with pytest.raises(
        UnsupportedLayers, match="layer 0 hands on tuple of Tensor, NoneType, Tensor, which it did not"
    ):
        layers.forward(calls)
