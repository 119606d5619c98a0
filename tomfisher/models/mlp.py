"""What of a layer is its MLP."""

from __future__ import annotations

import re

from torch import nn

_MLP = re.compile(
    r"mlp|ffn|feed_?forward|moe|expert|^fc\d*$|^(intermediate|output)$|^(up|down|gate)_proj$", re.I
)
_MIXER = re.compile(r"attn|attention|mamba|mixer|conv|ssm|recurrent|temporal|delta|norm", re.I)


def mlp_weights(layer: nn.Module, name: str, attention: nn.Module | None) -> tuple[str, ...]:
    """Names of the matrices in a layer that belong to its MLP (experts and routers too).

    Args:
        layer: the layer.
        name: its name.
        attention: its attention module, no part of which is MLP.
    """
    names: list[str] = []
    for child_name, child in layer.named_children():
        if attention is not None and any(module is attention for module in child.modules()):
            if child is not attention and not re.search(r"attn|attention", child_name, re.I):
                names += mlp_weights(child, f"{name}.{child_name}", attention)  # a block in a block (Zamba)
        elif _is_mlp(child_name, child):
            names += [f"{name}.{child_name}.{n}" for n, p in child.named_parameters() if p.ndim > 1]
    names += [
        f"{name}.{n}" for n, p in layer.named_parameters(recurse=False) if p.ndim > 1 and _MLP.search(n)
    ]
    return tuple(names)


def _is_mlp(name: str, child: nn.Module) -> bool:
    if _MLP.search(name) and not re.search(r"norm", name, re.I):
        return True
    kind = type(child).__name__
    return not _MIXER.search(name.replace("mixer", "")) and bool(_MLP.search(kind)) and "Norm" not in kind
