"""Running a model for measurement: mode, limits, and logits only where they are needed."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.models.onednn import by_onednn
from tomfisher.runtime.frequencies import fresh_frequencies


@contextlib.contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's training flag is put back on any exit."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.inference_mode(), by_onednn(model), fresh_frequencies(model):
            yield
    finally:
        for module, training in flags:
            module.training = training


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


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Stack id lists, padded on the right, where a causal model does not look, with each row's own last token.

    Not with a padding token: some models warn about theirs, or treat it as what is not there.
    """
    length = max(map(len, rows))
    return torch.tensor([[*row, *[row[-1]] * (length - len(row))] for row in rows], device=device)


def accepts(model: Any, argument: str) -> bool:
    """Whether the model's forward names this argument."""
    return argument in inspect.signature(model.forward).parameters


def cache_argument(model: Any) -> str | None:
    """What the model's forward calls its cache: "cache" since transformers 5.24, "past_key_values" before; or None."""
    return next((name for name in ("cache", "past_key_values") if accepts(model, name)), None)


@dataclass(frozen=True)
class Rows:
    """Where the logits of a token stand in what a forward gives.

    Args:
        offset: rows in front of the first token's, such as those of the virtual tokens of prompt tuning.
        kept: whether `logits_to_keep` gives the same rows as cutting them out of all.
    """

    offset: int = 0
    kept: bool = True


# What `tomfisher.runtime.rules` found out about a model; the rows of others are taken to be their tokens'.
_ROWS: weakref.WeakKeyDictionary[Any, Rows] = weakref.WeakKeyDictionary()


def rows_of(model: Any) -> Rows:
    """Where this model puts the logits of its tokens, as far as it was asked."""
    return _ROWS.get(model, Rows())


def set_rows(model: Any, rows: Rows) -> None:
    """Remember where this model puts the logits of its tokens, for `logits_at`."""
    _ROWS[model] = rows


def logits_at(model: Any, ids: Tensor, keep: Tensor, **arguments: Any) -> Tensor:
    """Logits at some positions, in the model's dtype.

    Args:
        model: a causal language model of transformers.
        ids: `[B, T]`.
        keep: positions, `[K]`.
        **arguments: for the model's forward.

    Returns:
        `[B, K, vocab]`.

    Raises:
        ValueError: the model gives another number of rows than it was found to give.
    """
    rows = rows_of(model)
    if accepts(model, "use_cache"):
        arguments.setdefault("use_cache", False)
    kept = rows.kept and accepts(model, "logits_to_keep")
    if kept:
        arguments["logits_to_keep"] = keep + rows.offset
    logits: Tensor = model(input_ids=ids, **arguments).logits
    expected = len(keep) if kept else ids.shape[1] + rows.offset
    if logits.shape[1] != expected:
        raise ValueError(
            f"{type(model).__name__} gave {logits.shape[1]} rows of logits where {expected} were expected, for "
            f"{ids.shape[1]} tokens: a row can no longer be told to belong to a token. Every token must have one row."
        )
    return logits if kept else logits[:, keep + rows.offset]
