"""A program whose layers run one at a time gives the bits of one on the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from resident import Resident
from torch import Tensor, nn

from tiny_models import ATTENTION, FAMILIES, QUICK, random_model, smallest_llama
from tomfisher.runtime.boundaries import Boundaries
from tomfisher.runtime.forward import forward
from tomfisher.runtime.layer_calls import UnsupportedLayers
from tomfisher.runtime.layer_guard import examine_layers
from tomfisher.runtime.layerwise import Layers
from tomfisher.runtime.modes import measuring
from tomfisher.runtime.rules import check_rules

TEXTS = [[3 + (7 * n + i) % 12 for i in range(n)] for n in (5, 9, 14, 14, 20)]


def _program(model: Any) -> tuple[dict[str, Any], Tensor]:
    rules = check_rules(model, TEXTS, tokens=64).to_dict()
    with measuring(model):
        return rules, forward(model, torch.tensor(TEXTS[2:4])).logits


def _layerwise(model: Any, folder: Path | None = None) -> tuple[tuple[dict[str, Any], Tensor], Layers]:
    layers = Layers(Resident(model), Boundaries(folder))
    examine_layers(layers, gradients=True)
    with layers.recording() as calls:
        _program(model)
    layers.forward(calls)
    with layers.answering(calls):
        return _program(model), layers


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in QUICK else pytest.mark.slow)
        for family in sorted({*FAMILIES, *ATTENTION} - {"both-ways"})
    ],
)
def test_a_program_gives_the_same_bits_layer_by_layer(family: str) -> None:
    model = random_model(family, noise=0.1)
    rules, logits = _program(model)
    (found, streamed), layers = _layerwise(model)
    assert found == rules
    assert torch.equal(streamed, logits)
    assert layers.passes <= 2  # a second one where the same call does not give the same bits
    assert all("forward" not in layer.__dict__ for _, layer in layers.opened.layers)


def test_hidden_states_in_a_file_are_the_same(tmp_path: Path) -> None:
    model = random_model("llama-gqa", noise=0.1)
    (_, streamed), layers = _layerwise(model, tmp_path)
    assert torch.equal(streamed, _program(model)[1])
    assert layers.boundaries.bytes_written > 0
    assert not list(tmp_path.iterdir())  # nothing is left for others to clear away


def test_a_file_of_hidden_states_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    boundaries = Boundaries(tmp_path)
    for number in range(10):
        for key in range(3):
            boundaries[number, key] = torch.full((4, 5), number + key / 10)
            boundaries.share((number, key), (number, key, "again"))
            boundaries.discard((number - 1, key))
            if number:
                assert float(boundaries[number - 1, key, "again"][0, 0]) == pytest.approx(
                    number - 1 + key / 10
                )
            boundaries.discard((number - 1, key, "again"))
    assert all(torch.equal(boundaries[9, key], torch.full((4, 5), 9 + key / 10)) for key in range(3))
    assert boundaries.file_bytes == 4 * 4 * 20  # three tensors, and one more while the next are written


def test_a_forward_that_was_not_recorded_goes_through_all_layers() -> None:
    model = random_model("llama-gqa", noise=0.1)
    layers = Layers(Resident(model), Boundaries())
    ids = torch.tensor([TEXTS[1]])
    with measuring(model):
        expected = forward(model, ids).logits
        with layers.answering([]):
            assert torch.equal(forward(model, ids).logits, expected)
    assert layers.passes == 1


def _changed(between: Any) -> Any:
    """A small Llama whose second layer is handed something else."""
    model: Any = smallest_llama()
    layer = model.model.layers[1]

    class Called(type(layer)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            args, kwargs = between(self, args, kwargs)
            return super().__call__(*args, **kwargs)

    layer.__class__ = Called
    return model


class _Wrapped(nn.Module):
    """A layer around another one, that the model calls instead."""

    def __init__(self, layer: nn.Module, change: Any) -> None:
        super().__init__()
        self.layer, self.change = layer, change

    def forward(self, hidden: Tensor, **kwargs: Any) -> Any:
        return self.change(self, self.layer(hidden, **kwargs))


def _keeping(module: Any, output: Tensor) -> Tensor:
    module.kept = output.mean()
    return output


class _Writing(_Wrapped):
    """A layer that changes what the next one is given."""

    def forward(self, hidden: Tensor, **kwargs: Any) -> Any:
        output = self.layer(hidden, **kwargs)
        kwargs["position_embeddings"][0].mul_(2)
        return output


def test_a_layer_that_writes_into_its_arguments_is_refused() -> None:
    model: Any = smallest_llama()
    model.model.layers[0] = _Writing(model.model.layers[0], None)
    layers = Layers(Resident(model), Boundaries())
    with layers.recording() as calls, torch.no_grad():
        forward(model, torch.tensor([TEXTS[1]]))
    with pytest.raises(UnsupportedLayers, match="layer 0 writes into its arguments"):
        layers.forward(calls)


def _shortened(module: Any, output: Tensor) -> Tensor:
    return output[:, 1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [(_keeping, "layer 1 keeps kept from one forward to the next"), (_shortened, "makes")],
)
def test_a_layer_that_does_more_than_hand_on_is_refused(change: Any, message: str) -> None:
    model: Any = smallest_llama()
    model.model.layers[1] = _Wrapped(model.model.layers[1], change)
    with pytest.raises(UnsupportedLayers, match=message):
        _layerwise(model)


def test_something_between_two_layers_is_refused() -> None:
    model = _changed(lambda module, args, kwargs: ((args[0] * 2, *args[1:]), kwargs))
    with pytest.raises(
        UnsupportedLayers, match="something is done to the hidden states between layers 0 and 1"
    ):
        _layerwise(model)


def test_an_argument_made_of_an_earlier_layer_is_refused() -> None:
    model = _changed(lambda module, args, kwargs: (args, {**kwargs, "beside": args[0] * 2}))
    with pytest.raises(
        UnsupportedLayers, match="layer 1 also gets something that is made of an earlier layer"
    ):
        _layerwise(model)


def test_a_cache_is_refused() -> None:
    from transformers import DynamicCache

    model = _changed(lambda module, args, kwargs: (args, {**kwargs, "beside": DynamicCache()}))
    with pytest.raises(UnsupportedLayers, match="layer 1 gets a DynamicCache"):
        _layerwise(model)


def test_a_hook_of_a_layer_is_refused() -> None:
    model: Any = smallest_llama()
    model.model.layers[1].register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(UnsupportedLayers, match="layer 1 has a hook"):
        _layerwise(model)


def test_a_shared_layer_is_refused() -> None:
    model: Any = smallest_llama()
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(UnsupportedLayers):
        _layerwise(model)
