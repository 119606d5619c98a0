"""The list of a decoder's layers, and what of a layer is its MLP."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

_MLP = re.compile(
    r"mlp|ffn|feed_?forward|moe|expert|^fc\d*$|^(intermediate|output)$|^(up|down|gate)_proj$", re.I
)
_MIXER = re.compile(r"attn|attention|mamba|mixer|conv|ssm|recurrent|temporal|delta|norm", re.I)


def find_layers(decoder: nn.Module, config: Any) -> nn.ModuleList | None:
    """The list of layers: the one as long as the config says, the first in the module tree; None where there is none.

    Args:
        decoder: of the model.
        config: of the decoder.
    """
    count = getattr(config, "num_hidden_layers", None)
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    whole = [found for found in lists if all(any(m.children()) for m in found)]
    return next(iter(whole or lists), None)


def mlp_weights(layer: nn.Module, name: str, attention: nn.Module | None) -> tuple[str, ...]:
    """Names of the matrices in a layer that belong to its MLP (experts and routers too).

    Args:
        layer: the layer.
        name: its name.
        attention: its attention module, no part of which is MLP.
    """
    found = []
    for child_name, child in layer.named_children():
        if attention is not None and any(module is attention for module in child.modules()):
            continue
        if _is_mlp(child_name, child):
            found += [f"{name}.{child_name}.{n}" for n, p in child.named_parameters() if p.ndim > 1]
    found += [
        f"{name}.{n}" for n, p in layer.named_parameters(recurse=False) if p.ndim > 1 and _MLP.search(n)
    ]
    return tuple(found)


def _is_mlp(name: str, child: nn.Module) -> bool:
    if _MLP.search(name) and not re.search(r"norm", name, re.I):
        return True
    kind = type(child).__name__
    return not _MIXER.search(name.replace("mixer", "")) and bool(_MLP.search(kind)) and "Norm" not in kind
