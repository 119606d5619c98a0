"""Rotary frequencies that grow with the text are taken afresh in every forward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

_LONGEST = "max_seq_len_cached"


@contextlib.contextmanager
def fresh_frequencies(model: nn.Module) -> Iterator[None]:
    """Let no forward inside the block see the frequencies of an earlier, longer text.

    Dynamic NTK scaling in transformers keeps the frequencies of the longest text so far until one comes that is
    shorter than the original context, so the numbers of a text depend on what ran before it. Here every forward
    begins with the original ones, as on a model that was just loaded.

    Args:
        model: any module; those without such frequencies are left alone.
    """
    handles = [
        module.register_forward_pre_hook(_reset)
        for module in model.modules()
        if hasattr(module, _LONGEST) and hasattr(module, "original_max_seq_len") and _is_dynamic(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_dynamic(module: Any) -> bool:
    kinds = getattr(module, "rope_type", "")
    kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any("dynamic" in str(kind) for kind in kinds)


def _reset(module: Any, _: Any) -> None:
    for name in [name for name in vars(module) if name.endswith(_LONGEST)]:
        setattr(module, name, module.original_max_seq_len)
    buffers = [name for name in module._buffers if name.endswith("inv_freq") and "original" not in name]
    for name in buffers:
        original = getattr(module, name.replace("inv_freq", "original_inv_freq"), None)
        if original is not None:
            module.register_buffer(
                name, original.to(module._buffers[name].device, copy=True), persistent=False
            )
