"""What a model's forward takes, and its logits at the positions where they are needed."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tomfisher.runtime.board import check


def accepts(model: Any, argument: str) -> bool:
    """Whether the model's forward names this argument."""
    return argument in inspect.signature(model.forward).parameters


def cache_argument(model: Any) -> str | None:
    """What the model's forward calls its cache: "cache" since transformers 5.24, "past_key_values" before; or None."""
    return next((name for name in ("cache", "past_key_values") if accepts(model, name)), None)


def forward(model: Any, ids: Tensor, **arguments: Any) -> Any:
    """What the model gives for token ids, without a cache unless `use_cache` asks for one.

    Args:
        model: a causal language model of transformers.
        ids: `[B, T]`.
        **arguments: for its forward.

    Raises:
        RankError: another rank of this call has ended.
    """
    check()
    if accepts(model, "use_cache") or _hands_on(model, "use_cache"):
        arguments.setdefault("use_cache", False)
    return model(input_ids=ids, **arguments)


def _hands_on(model: Any, argument: str) -> bool:
    """Whether the model's forward takes any argument, and its decoder names this one."""
    parameters = inspect.signature(model.forward).parameters.values()
    decoder = getattr(model, "get_decoder", lambda: None)()
    return (
        any(p.kind is p.VAR_KEYWORD for p in parameters)
        and decoder is not None
        and accepts(decoder, argument)
    )


def ordinary_ids(model: Any) -> list[int]:
    """Token ids that stand for nothing special (padding, begin, image) in the model's config, rising; [0] at least.

    Args:
        model: a causal language model of transformers.
    """
    config = model.config
    special = set(_special_ids(config.to_dict()))
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    vocabulary = getattr(text, "vocab_size", None)
    return [i for i in range(vocabulary if isinstance(vocabulary, int) else 64) if i not in special] or [0]


def _special_ids(config: Mapping[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _special_ids(value)
        elif str(key).endswith(("_id", "_index", "_ids")):
            yield from (i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int))


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
    kept = rows.kept and accepts(model, "logits_to_keep")
    if kept:
        arguments["logits_to_keep"] = keep + rows.offset
    logits: Tensor = forward(model, ids, **arguments).logits
    expected = len(keep) if kept else ids.shape[1] + rows.offset
    if logits.shape[1] != expected:
        raise ValueError(
            f"{type(model).__name__} gave {logits.shape[1]} rows of logits where {expected} were expected, for "
            f"{ids.shape[1]} tokens: a row can no longer be told to belong to a token. Every token must have one row."
        )
    return logits if kept else logits[:, keep + rows.offset]


def logprobs(logits: Tensor) -> Tensor:
    """`log softmax(logits)` over the vocabulary, without a gradient; float32, or float64 where the logits are."""
    return logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
