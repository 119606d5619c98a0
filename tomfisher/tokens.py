"""Where a prompt ends and its continuation begins, in tokens."""

from __future__ import annotations

from typing import Any


def split_continuation(tokenizer: Any, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """Encode `prompt + continuation` as one string and cut the ids where the continuation begins.

    One string is encoded because many tokenizers merge across the boundary when the parts are encoded alone.
    A token belongs to the continuation when its last character does. Without character offsets (slow
    tokenizers) the cut is at `len(encode(prompt))`.

    Args:
        tokenizer: a transformers tokenizer; its default special tokens are added.
        prompt: the text before the cut.
        continuation: the text after it, normally starting with a space.

    Returns:
        `(prompt_ids, continuation_ids)`; their concatenation is the encoding of the whole string, without
        special tokens behind its end.

    Raises:
        ValueError: the continuation has no token, or no token comes before it.
    """
    whole = prompt + continuation
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(whole, return_offsets_mapping=True, return_special_tokens_mask=True)
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        special = encoded["special_tokens_mask"]
        while ids and special[len(ids) - 1] and offsets[len(ids) - 1][0] == offsets[len(ids) - 1][1]:
            ids.pop()
        cut = next(
            (i for i in range(len(ids)) if not special[i] and offsets[i][1] > len(prompt)),
            len(ids),
        )
    else:
        ids = list(tokenizer(whole)["input_ids"])
        cut = len(tokenizer(prompt)["input_ids"])
    if cut >= len(ids):
        raise ValueError(
            f"The continuation {continuation!r} has no token of its own. It must add text behind the prompt."
        )
    if cut == 0:
        raise ValueError(
            f"The prompt {prompt!r} has no token, so nothing predicts the first token of {continuation!r}. "
            "Give a non-empty prompt, or a tokenizer that adds a begin-of-sequence token."
        )
    return ids[:cut], ids[cut:]
