from __future__ import annotations

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from tomfisher.runtime.structure import is_conv1d, is_linear, layer_index, owners_of


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.12.mlp.up_proj.weight", 12),
        ("transformer.h.3.attn.c_attn.weight", 3),
        ("model.layers.1.mlp.experts.7.w1", 1),
        ("lm_head.weight", None),
        ("block2.weight", None),
        ("0.weight", 0),
    ],
)
def test_layer_index_is_the_first_dotted_number(name: str, layer: int | None) -> None:
    assert layer_index(name) == layer


def test_what_is_linear() -> None:
    assert is_linear(nn.Linear(2, 3)) and is_linear(Conv1D(2, 3)) and not is_linear(nn.Conv1d(1, 1, 2))
    assert is_conv1d(Conv1D(2, 3)) and not is_conv1d(nn.Linear(2, 3)) and not is_conv1d(nn.Conv1d(1, 1, 2))


def test_a_tied_weight_has_two_owners() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    owners = owners_of(model)
    assert [(o.module_name, o.attribute) for o in owners[id(model["a"].weight)]] == [
        ("a", "weight"),
        ("b", "weight"),
    ]
    assert len(owners[id(model["b"].bias)]) == 1
