"""Where a prompt ends and its continuation begins, in tokens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

TOLERATED_UNKNOWN = 0.1


def leading_specials(tokenizer: Any, ids: list[int]) -> int:
    """Count the special tokens, such as begin-of-sequence, that `ids` starts with."""
    special = set(tokenizer.all_special_ids)
    return next((i for i, token in enumerate(ids) if token not in special), len(ids))


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Encode a text with the tokenizer's default special tokens in front of it and none behind it.

    Args:
        tokenizer: a transformers tokenizer.
        text: any text; there is no limit on its length and no warning about it.

    Returns:
        Token ids.
    """
    ids, special, _ = _encode(tokenizer, text)
    return ids[: _end(special)]


def split_continuation(tokenizer: Any, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """Encode `prompt + continuation` as one string and cut the ids where the continuation begins.

    One string is encoded because many tokenizers merge across the boundary when the parts are encoded alone.
    A token belongs to the continuation when its last character does. Without character offsets (slow
    tokenizers) the cut is at the length of the encoded prompt.

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
    ids, special, offsets = _encode(tokenizer, prompt + continuation)
    ids = ids[: _end(special)]
    if offsets is None:
        front = next((i for i, added in enumerate(special) if not added), len(ids))
        cut = max(len(encode_text(tokenizer, prompt)), front)
    else:
        cut = next((i for i in range(len(ids)) if not special[i] and offsets[i][1] > len(prompt)), len(ids))
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


def warn_of_unknown_tokens(tokenizer: Any, texts: Sequence[Sequence[int]], what: str) -> None:
    """Warn when more than a tenth of the texts' tokens are the tokenizer's "unknown" token.

    Args:
        tokenizer: a transformers tokenizer; one without an unknown token knows every text.
        texts: their ids.
        what: what to call them.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    total = sum(map(len, texts))
    if unknown is None or not total:
        return
    share = sum(ids.count(unknown) for ids in texts) / total
    if share > TOLERATED_UNKNOWN:
        warnings.warn(
            f"{share:.0%} of the tokens of {what} are unknown to this model's tokenizer: what follows says little "
            "about the texts. Use a model that knows their words.",
            stacklevel=2,
        )


def _encode(tokenizer: Any, text: str) -> tuple[list[int], list[int], list[tuple[int, int]] | None]:
    """Give ids, flags of added special tokens, and character offsets where the tokenizer has them."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(text, return_offsets_mapping=fast, return_special_tokens_mask=True, verbose=False)
    offsets = [tuple(pair) for pair in encoded["offset_mapping"]] if fast else None
    return list(encoded["input_ids"]), list(encoded["special_tokens_mask"]), offsets


def _end(special: list[int]) -> int:
    """Length without the special tokens behind the text."""
    end = len(special)
    while end and special[end - 1]:
        end -= 1
    return end
