"""What a model is made of: who owns a parameter, which modules are linear, where its layers are."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")
SEPARATE_QUERY_KEY = ("q_proj", "k_proj", "query", "key")
FUSED_QUERY_KEY = ("c_attn", "query_key_value", "Wqkv", "qkv_proj", "in_proj_qkv")


@dataclass(frozen=True)
class Owner:
    """One place where a parameter is registered: `module._parameters[attribute]`."""

    module_name: str
    module: nn.Module
    attribute: str


def owners_of(model: nn.Module) -> dict[int, list[Owner]]:
    """Every place each parameter is registered at, keyed by `id(parameter)`; tied parameters have several."""
    owners: dict[int, list[Owner]] = {}
    for module_name, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(Owner(module_name, module, attribute))
    return owners


def layer_index(name: str) -> int | None:
    """Layer number in a parameter's name, its first dotted number ("model.layers.3.mlp.w": 3), or None."""
    match = _NUMBER.search(name)
    return int(match.group(1)) if match else None


def is_conv1d(module: nn.Module) -> bool:
    """Whether the module is transformers' `Conv1D`, a linear layer whose weight is `[d_in, d_out]`."""
    return any(
        base.__name__ == "Conv1D" and base.__module__.startswith("transformers.")
        for base in type(module).__mro__
    )


def is_linear(module: nn.Module) -> bool:
    """Whether the module multiplies its input by one weight matrix: `nn.Linear` or `Conv1D`."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def layer_pattern(name: str) -> str:
    """A parameter's name with its layer number, the first dotted number, replaced by an asterisk."""
    return _NUMBER.sub(lambda match: match.group(0).replace(match.group(1), "*"), name, count=1)
