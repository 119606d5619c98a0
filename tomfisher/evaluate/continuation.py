"""Writing on: by `generate` where it writes what the model's forward says, else by the forward itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tomfisher.evaluate.execute import has_cache
from tomfisher.runtime.device import device_of
from tomfisher.runtime.forward import logits_at, logprobs
from tomfisher.runtime.rules import Rules, difference


def generate_is_right(model: Any, prompt: Sequence[int], rules: Rules) -> bool:
    """Whether `generate`, which keeps keys and values, takes its tokens from the logits of whole rows.

    Two tokens are written after the prompt, and the logits they were taken from are compared with those of forwards
    over all tokens up to there. It is wrong where a row's numbers depend on its length, and on some wrapped models.

    Args:
        model: a causal language model of transformers, in evaluation mode, with its settings for generation.
        prompt: token ids.
        rules: what the model said to the rules.
    """
    if not rules.padded or not has_cache(model):
        return False
    ids = torch.tensor([list(prompt)], device=device_of(model))
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=2,
        max_new_tokens=2,
        output_logits=True,
        return_dict_in_generate=True,
    )
    pairs = zip(out.logits, (ids, out.sequences[:, :-1]), strict=True)
    apart = [
        difference(logprobs(written), logprobs(_next(model, ids)).to(written.device))
        for written, ids in pairs
    ]
    return max(apart) <= rules.tolerance


def write(
    model: Any,
    ids: Tensor,
    choose: Callable[[Tensor, Tensor], Tensor],
    max_new_tokens: int,
    ends: Sequence[int],
) -> Tensor:
    """Continue rows of one length, every token from a forward over all before it.

    Args:
        model: a causal language model of transformers.
        ids: `[B, T]`.
        choose: from the ids so far and the logits `[B, V]` of the next token to scores of which the largest is taken.
        max_new_tokens: tokens to write.
        ends: ids that end a row; what is after one is that same token.

    Returns:
        `[B, T']`, T' at most `T + max_new_tokens`.
    """
    ending = torch.tensor(list(ends), dtype=ids.dtype, device=ids.device)
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        token = choose(ids, _next(model, ids)).argmax(-1).to(ids)
        token = torch.where(done, ids[:, -1], token)
        ids = torch.cat([ids, token[:, None]], dim=1)
        done |= torch.isin(token, ending)
        if bool(done.all()):
            break
    return ids


def _next(model: Any, ids: Tensor) -> Tensor:
    """Logits `[B, V]` of the token after each row."""
    return logits_at(model, ids, torch.tensor([ids.shape[1] - 1], device=ids.device))[:, 0]
