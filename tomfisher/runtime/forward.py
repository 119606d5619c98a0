"""Running a model for measurement: mode, limits, and logits only where they are needed."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.models.onednn import by_onednn


@contextlib.contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's training flag is put back on any exit."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.inference_mode(), by_onednn(model):
            yield
    finally:
        for module, training in flags:
            module.training = training


def device_of(model: Any) -> torch.device:
    """The device that token ids have to be on; that of the computation where accelerate offloads the embedding."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    hook: Any = getattr(embeddings, "_hf_hook", None)
    if getattr(hook, "offload", False):
        return torch.device(hook.execution_device)
    return next((embeddings if embeddings is not None else model).parameters()).device


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Stack id lists, padded on the right, where a causal model does not look, with each row's own last token.

    Not with a padding token: some models warn about theirs, or treat it as what is not there.
    """
    length = max(map(len, rows))
    return torch.tensor([[*row, *row[-1:] * (length - len(row))] for row in rows], device=device)


def accepts(model: Any, argument: str) -> bool:
    """Whether the model's forward names this argument."""
    return argument in inspect.signature(model.forward).parameters


def cache_argument(model: Any) -> str | None:
    """What the model's forward calls its cache: "cache" since transformers 5.24, "past_key_values" before; or None."""
    return next((name for name in ("cache", "past_key_values") if accepts(model, name)), None)


def logits_at(model: Any, ids: Tensor, keep: Tensor, **arguments: Any) -> Tensor:
    """Logits `[B, K, vocab]` at the positions `keep` `[K]` of `ids` `[B, T]`, in the model's dtype."""
    if accepts(model, "use_cache"):
        arguments.setdefault("use_cache", False)
    if accepts(model, "logits_to_keep"):
        return model(input_ids=ids, logits_to_keep=keep, **arguments).logits
    return model(input_ids=ids, **arguments).logits[:, keep]
