"""How many tokens a model has positions for: its position table is asked, not its config alone."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tomfisher.runtime.device import device_of, embedding_of
from tomfisher.runtime.forward import forward, ordinary_ids
from tomfisher.runtime.freed import missing_weights
from tomfisher.runtime.modes import measuring
from tomfisher.runtime.structure import layer_index
from tomfisher.runtime.torch_state import plain_torch

# as configs call it; `attribute_map` leads most others to the first
_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "seq_length",
    "model_max_length",
    "max_target_positions",
)
_PROBE_TOKENS = 3
_Tables = tuple[tuple[int, int], ...]
_known: weakref.WeakKeyDictionary[nn.Module, tuple[_Tables, int | None]] = weakref.WeakKeyDictionary()


def position_limit(model: Any) -> int | None:
    """Longest sequence that the model has positions for, in tokens; None where nothing limits it (Mamba).

    A learned table of positions says it itself: rows after the one that the first token takes (RoBERTa's 514 rows
    are 512 positions, OPT's 2,050 are 2,048). Else it is what the config names, such as `max_position_embeddings`; a
    sliding window limits attention, not the text.

    Args:
        model: a causal language model of transformers.
    """
    learned = _learned_positions(model)
    return learned if learned is not None else _configured(getattr(model, "config", None))


def check_length(model: Any, length: int, what: str, way_out: str = "Shorten it.") -> None:
    """Refuse a sequence of more tokens than the model has positions for.

    Args:
        model: a causal language model of transformers.
        length: tokens.
        what: what the message calls the sequence.
        way_out: what the message advises.

    Raises:
        ValueError: it is too long.
    """
    limit = position_limit(model)
    if limit is not None and length > limit:
        raise ValueError(f"{what} has {length} tokens, but the model has positions for {limit}. {way_out}")


def has_learned_positions(model: nn.Module) -> bool:
    """Whether a model has tables that may be of positions, so that it has to be asked."""
    return bool(_tables(model))


def _configured(config: Any) -> int | None:
    if hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    for name in _NAMES:
        limit = getattr(config, name, None)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
            return limit
    return None


def _learned_positions(model: Any) -> int | None:
    """Positions of the smallest learned table; None where the model looks up none, or holds no values to ask.

    The answer is kept for as long as the model has the same tables, also while their values are in a file.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        return None
    tables = _tables(model)
    known = _known.get(model)
    if known is not None and known[0] == tables:
        return known[1]
    if not tables or any(parameter.is_meta for parameter in model.parameters()) or missing_weights(model):
        return None
    _known[model] = tables, _asked(model)
    return _known[model][1]


def _tables(model: nn.Module) -> _Tables:
    """The embeddings beside that of the tokens, each with its number of rows."""
    tokens = embedding_of(model)
    return tuple(
        (id(module), int(module.weight.shape[0]))
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module is not tokens
    )


class _Enough(Exception):
    """The probe has seen what comes before the layers."""


class _Lookups(TorchFunctionMode):
    """Notes every table that is looked up at rising positions, one after another.

    Attributes:
        positions: of each, how many rows there are from the first token's on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.positions: list[int] = []

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.embedding:
            ids, weight = (*args, *(kwargs[name] for name in ("input", "weight") if name in kwargs))[:2]
            self._note(ids, weight)
        return func(*args, **kwargs)

    def _note(self, ids: Tensor, weight: Tensor) -> None:
        places = ids.reshape(-1)[-_PROBE_TOKENS:].tolist()
        rising = places == list(range(places[0], places[0] + _PROBE_TOKENS))
        if (
            rising and places[-1] < len(weight) - 1
        ):  # a table taken whole: the virtual tokens of prompt tuning
            self.positions.append(weight.shape[0] - places[0])


def _asked(model: Any) -> int | None:
    """Run a few equal tokens up to the first layer and see where they are looked up."""
    lookups = _Lookups()
    layers = [module for name, module in model.named_modules() if layer_index(name) is not None]
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(_stop).remove)
        stack.enter_context(suppress(_Enough))
        with plain_torch(), measuring(model), lookups:
            padding = getattr(embedding_of(model), "padding_idx", None)  # some models give it no position
            token = next((i for i in ordinary_ids(model) if i != padding), 0)
            forward(model, torch.full((1, _PROBE_TOKENS), token, device=device_of(model)))
    return min(lookups.positions, default=None)


def _stop(module: nn.Module, args: Any) -> None:
    raise _Enough
