"""Does `generate` write what the model's forward says, token after token?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tomfisher.runtime.forward import device_of, logits_at
from tomfisher.runtime.rules import Rules, difference


def writes_with_cache(model: Any, prompt: Sequence[int], rules: Rules) -> bool:
    """Whether `generate` may keep keys and values; without them where only that gives the logits of whole rows.

    Two tokens are written behind the prompt, and the logits that they were taken from are compared with those of a
    forward over all tokens. Where a row's numbers depend on its length, what was kept is of another length.

    Args:
        model: a causal language model of transformers, in evaluation mode, with its settings for generation.
        prompt: token ids.
        rules: what the model said to the rules.

    Raises:
        ValueError: `generate` gives other logits in both ways.
    """
    found = {}
    for use_cache in (True, False) if rules.padded else (False,):
        found[use_cache] = _apart(model, prompt, use_cache)
        if found[use_cache] <= rules.tolerance:
            return use_cache
    raise ValueError(
        f'{type(model).__name__} breaks the rule "generate continues a text": the log-probabilities that it writes by '
        f"differ by {min(found.values()):.2g} nats from those of its forward. Use method='choice', which needs the "
        "forward alone."
    )


def _apart(model: Any, prompt: Sequence[int], use_cache: bool) -> float:
    ids = torch.tensor([list(prompt)], device=device_of(model))
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=2,
        max_new_tokens=2,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
    )
    written = torch.stack(out.logits, 1).float().log_softmax(-1)
    length = ids.shape[1]
    keep = torch.tensor([length - 1, length], device=ids.device)
    whole = logits_at(model, out.sequences[:, : length + 1], keep).float().log_softmax(-1)
    return difference(written, whole.to(written.device))
