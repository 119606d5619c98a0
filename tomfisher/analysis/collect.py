"""Running prompts through a model while collectors see the queries and keys of each layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tomfisher.models.attention_calls import AttentionCall, OwnAttention, Running, inside, watching_interface
from tomfisher.models.families import Architecture, UnsupportedModel
from tomfisher.models.queries import QueryKey, query_key
from tomfisher.progress import progress_bar
from tomfisher.runtime.batches import pad
from tomfisher.runtime.device import device_of
from tomfisher.runtime.forward import logits_at
from tomfisher.runtime.gate import check_ids, check_model, why_not_finite
from tomfisher.runtime.modes import measuring
from tomfisher.runtime.positions import check_length
from tomfisher.runtime.rules import check_rules, weights_kept
from tomfisher.runtime.torch_state import plain_torch

TOKENS_PER_BATCH = 4096
Observer = Callable[[int, QueryKey], None]


class Collector(Protocol):
    """Sums up what it sees of the queries and keys; keeps sums, never activations."""

    def update(self, layer: int, seen: QueryKey, lengths: list[int], prompts: list[int]) -> None:
        """Add one layer of one batch.

        Args:
            layer: its number.
            seen: queries and keys, padded on the right.
            lengths: real positions of each row.
            prompts: which prompt each row is.
        """


@plain_torch()
def collect(
    model: Any,
    architecture: Architecture,
    prompts: Sequence[Sequence[int] | Tensor],
    collectors: Sequence[Collector],
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = True,
    what: str = "analysis",
) -> list[int]:
    """Run every prompt once, in evaluation mode and without gradients, for all collectors together.

    Args:
        model: a causal language model of transformers.
        architecture: of that model.
        prompts: token ids.
        collectors: what sees the queries and keys.
        tokens_per_batch: upper bound of batch size times length; a longer prompt is a batch of its own.
        progress: show a bar on a terminal.
        what: label of the bar.

    Returns:
        Tokens of each prompt.

    Raises:
        ValueError: no prompts, one with fewer than two tokens, with unknown ids or longer than the model's positions;
            or logits that are NaN.
        UnsupportedModel: an attention layer ran without being seen.
    """
    check_model(model)
    rows = _checked(model, prompts)
    seen: set[int] = set()
    batch: list[int] = []

    def observe(layer: int, inputs: QueryKey) -> None:
        lengths = [len(rows[i]) for i in batch]
        _check_extent(inputs, max(lengths))
        seen.add(layer)
        for collector in collectors:
            collector.update(layer, inputs, lengths, batch)

    rules = check_rules(model, rows, tokens=tokens_per_batch)
    batches = rules.plan([len(row) for row in rows], tokens_per_batch)
    bar = progress_bar(total=len(rows), desc=what, unit="prompt", enabled=progress)
    with bar, watching(architecture, observe), weights_kept(model), measuring(model):
        for batch in batches:
            _forward(model, pad([rows[i] for i in batch], device_of(model)))
            if missing := sorted(architecture.attention.keys() - seen):
                raise UnsupportedModel(
                    f"The attention of layers {', '.join(map(str, missing))} ran without being seen: it does not go "
                    "through transformers' attention interface. Load the model without trust_remote_code, or with "
                    "another attn_implementation."
                )
            bar.update(len(batch))
    return [len(row) for row in rows]


def _check_extent(inputs: QueryKey, length: int) -> None:
    """Refuse queries and keys that are not one for each token: of virtual tokens in front, or a cache."""
    for what, tensor in (("queries", inputs.q), ("keys", inputs.k)):
        if tensor.shape[2] != length:
            raise UnsupportedModel(
                f"The attention has {tensor.shape[2]} {what} for {length} tokens: there are others in front, such as "
                "the virtual tokens of prompt or prefix tuning, and no measure here knows them."
            )


def _checked(model: Any, prompts: Sequence[Sequence[int] | Tensor]) -> list[list[int]]:
    """Prompts as lists of ids; refuses none, one of fewer than two tokens, and one beyond the positions."""
    if any(isinstance(prompt, int) for prompt in prompts):
        raise TypeError(
            "prompts must be a list of texts, each a list of token ids, got ids alone. Pass [ids]."
        )
    rows = [p.tolist() if isinstance(p, Tensor) else list(p) for p in prompts]
    if not rows:
        raise ValueError("There are no prompts to analyse. Give at least one list of token ids.")
    for index, row in enumerate(rows):
        if len(row) < 2:
            raise ValueError(
                f"Prompt {index} has {len(row)} token(s); at least 2 are needed, because the first token can only "
                "attend to itself. Use a longer text."
            )
    check_ids(model, prompts, "Prompt")
    longest = max(range(len(rows)), key=lambda index: len(rows[index]))
    check_length(model, len(rows[longest]), f"Prompt {longest}")
    return rows


def supported(x: Tensor) -> Tensor:
    """Queries or keys in a dtype that the ops take: float64 becomes float32."""
    return x.float() if x.dtype == torch.float64 else x


def _forward(model: Any, ids: Tensor) -> None:
    logits = logits_at(model, ids, torch.tensor([ids.shape[1] - 1], device=ids.device))
    if bool(logits.isnan().any()):
        raise ValueError(
            f"The model's logits are NaN, so nothing inside can be measured. {why_not_finite(model)}"
        )


@contextlib.contextmanager
def watching(architecture: Architecture, observe: Observer) -> Iterator[None]:
    """Call `observe(layer, inputs)` in every attention layer of every forward pass inside the block.

    It works with any attention implementation (eager, sdpa, flash): the implementation that the model is set to
    still does the work, after `observe` has seen what it is given. Attention in a module's own code is found among its
    PyTorch calls. On any exit, everything is as it was before. Other models that run meanwhile are not observed; a
    second thread that watches waits for the first.

    Args:
        architecture: of the model that runs (`tomfisher.models.describe`).
        observe: must keep neither queries nor keys.

    Yields:
        Nothing.
    """
    watcher = _Watcher(architecture, observe)
    running: list[Running] = []
    own = [a.module for a in architecture.attention.values() if not a.interface]
    mode = (
        OwnAttention(lambda: running[-1] if running else None, watcher) if own else contextlib.nullcontext()
    )
    with watching_interface(watcher.concerns, watcher), inside(own, running), mode:
        yield


class _Watcher:
    """Hands each call of the architecture's layers to `observe`."""

    def __init__(self, architecture: Architecture, observe: Observer) -> None:
        self._layers = {id(a.module): (index, a) for index, a in architecture.attention.items()}
        self._observe = observe

    def concerns(self, module: nn.Module) -> bool:
        """Whether the module is one of the layers'."""
        return id(module) in self._layers

    def enters(self, call: AttentionCall) -> None:
        """See `Watcher.enters`."""
        index, attention = self._layers[id(call.module)]
        if call.scores is not None and attention.scale is None:
            return
        seen = query_key(call, attention.scale)
        self._observe(index, seen._replace(k=seen.k[:, :: attention.repeats]))

    def leaves(self, call: AttentionCall, output: Tensor) -> Tensor:
        """See `Watcher.leaves`."""
        return output
