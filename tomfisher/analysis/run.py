"""Prompts through a model in batches, with collectors looking at the queries and keys of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tomfisher.analysis.capture import QueryKey, watching
from tomfisher.models.families import Architecture, UnsupportedModel
from tomfisher.progress import progress_bar
from tomfisher.runtime.batches import pad, plan_batches
from tomfisher.runtime.device import device_of
from tomfisher.runtime.forward import accepts, forward, rows_of
from tomfisher.runtime.gate import check_ids, check_length, check_model, plain_torch, why_not_finite
from tomfisher.runtime.modes import measuring
from tomfisher.runtime.rules import SINGLE, Rules, check_rules, weights_kept

TOKENS_PER_BATCH = 4096


class Collector(Protocol):
    """Sums up what it sees of the queries and keys; keeps sums, never activations."""

    def look(self, layer: int, seen: QueryKey, lengths: list[int], prompts: list[int]) -> None:
        """Take in one layer of one batch.

        Args:
            layer: its number.
            seen: queries and keys, padded on the right.
            lengths: real positions of each row.
            prompts: which prompt each row is.
        """


@plain_torch()
def run(
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
        collectors: what looks.
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

    def look(layer: int, inputs: QueryKey) -> None:
        _check_extent(inputs, max(len(rows[i]) for i in batch))
        seen.add(layer)
        for collector in collectors:
            collector.look(layer, inputs, [len(rows[i]) for i in batch], batch)

    rules = ask(model, rows, tokens_per_batch)
    most = 1 if rules.batches == SINGLE else None
    batches = plan_batches([len(row) for row in rows], tokens_per_batch, most, rules.padded)
    bar = progress_bar(total=len(rows), desc=what, unit="prompt", enabled=progress)
    with bar, watching(architecture, look), weights_kept(model), measuring(model):
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


def ask(model: Any, prompts: Sequence[Sequence[int] | Tensor], tokens_per_batch: int) -> Rules:
    """What the model says to the rules on these prompts, and the batches that follow (`tomfisher.runtime.rules`)."""
    return check_rules(model, prompts, tokens=tokens_per_batch)


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
    options: dict[str, Any] = {}
    if rows_of(model).kept and accepts(model, "logits_to_keep"):
        # as a tensor: a number makes Gemma 4 compute its last layers for so many queries only
        options["logits_to_keep"] = torch.tensor([ids.shape[1] - 1], device=ids.device)
    logits = forward(model, ids, **options).logits
    if bool(logits.isnan().any()):
        raise ValueError(
            f"The model's logits are NaN, so nothing inside can be measured. {why_not_finite(model)}"
        )
