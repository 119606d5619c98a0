"""Where a model takes its input: the device of the token ids, and the module that they go to first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def device_of(model: Any) -> torch.device:
    """The device that token ids have to be on; that of the computation where accelerate offloads the embedding."""
    embeddings = embedding_of(model)
    hook: Any = getattr(embeddings, "_hf_hook", None)
    if getattr(hook, "offload", False):
        return torch.device(hook.execution_device)
    return next((embeddings if embeddings is not None else model).parameters()).device


def embedding_of(model: Any) -> nn.Module | None:
    """The module that turns token ids into vectors, or None where the model names none."""
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return (
        embeddings
        if isinstance(embeddings, nn.Module) and any(True for _ in embeddings.parameters())
        else None
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device; to a GPU through pinned memory, so that the host does not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
