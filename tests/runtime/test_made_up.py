"""Made-up weights: there inside the block, in the memory of the largest; afterwards what was there before."""

from __future__ import annotations

import torch

from tiny_models import random_model
from tomfisher.runtime.freed import free, freed_weights
from tomfisher.runtime.made_up import made_up


def test_weights_are_there_in_the_block_and_gone_after_it() -> None:
    model = random_model("llama-gqa")
    layer = model.model.layers[0]
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    kept = model.model.norm.weight.detach().clone()
    for parameter in layer.parameters():
        free(parameter)
    names = {name for name, _ in model.named_parameters() if name.startswith("model.layers.0.")}
    with made_up(model.parameters()):
        assert not freed_weights(model)
        storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        assert len(storages) == 2  # matrices and vectors
        assert torch.isfinite(model(input_ids=torch.tensor([[3, 4, 5]])).logits).all()
        assert not torch.equal(model.model.norm.weight, kept)
    assert set(freed_weights(model)) == names
    after = {name: parameter.data_ptr() for name, parameter in model.named_parameters() if name not in names}
    assert after == {name: places[name] for name in after}
    assert torch.equal(model.model.norm.weight, kept)


def test_rows_of_one_matrix_differ() -> None:
    weight = torch.nn.Parameter(torch.empty(300, 256))
    with made_up([weight]):
        assert len(torch.unique(weight.detach(), dim=0)) == 300
