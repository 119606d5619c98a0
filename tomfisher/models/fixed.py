"""Parameters that a model itself marks as fixed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def fixed_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that require no gradient because the model's own code says so.

    Tables of sine waves, a tokenizer's own network, balances that a trainer sets by hand: they are parameters in
    name alone. The test is a model built anew from the class and the config, without memory: what requires a
    gradient there and none in `model` was frozen by the user, and is no fixed parameter.

    Args:
        model: any module; one that cannot be built from its config has no parameter that is known to be fixed.

    Returns:
        Names, in model order.
    """
    unmoved = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if not unmoved:
        return []
    trained = _trained_anew(model)
    return [name for name in unmoved if trained.get(name, True) is False]


def _trained_anew(model: Any) -> dict[str, bool]:
    """Parameter name to `requires_grad` in a fresh model of the same class and config."""
    try:
        with torch.device("meta"):
            fresh = type(model)(copy.deepcopy(model.config))
    except Exception:  # a class that is not built from a config, or not on the meta device: nothing is known
        return {}
    return {name: parameter.requires_grad for name, parameter in fresh.named_parameters()}
