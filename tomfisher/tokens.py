"""Where a text begins and where a continuation of it does, in tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from tomfisher.text_files import check_text
from tomfisher.unknown import dropped_characters

BOS = ("auto", "yes", "no")


class EncodedText(NamedTuple):
    """A text in tokens, without special tokens after it.

    Args:
        begin: the special tokens in front, such as begin-of-sequence.
        ids: the text's own tokens.
        offsets: which characters of the text each of `ids` stands for, where the tokenizer says that.
        start: how many characters of the text `begin` stands for: 0, unless the text brings its begin token itself.
    """

    begin: list[int]
    ids: list[int]
    offsets: list[tuple[int, int]] | None
    start: int

    @property
    def all(self) -> list[int]:
        """`begin + ids`."""
        return self.begin + self.ids


def check_bos(bos: str) -> None:
    """Raise ValueError unless `bos` is "auto", "yes" or "no"."""
    if bos not in BOS:
        raise ValueError(f"bos must be one of {', '.join(BOS)}, got {bos!r}.")


def leading_specials(tokenizer: Any, ids: list[int]) -> int:
    """Count the special tokens, such as begin-of-sequence, that `ids` starts with."""
    special = set(tokenizer.all_special_ids)
    return next((i for i, token in enumerate(ids) if token not in special), len(ids))


def encode_parts(tokenizer: Any, text: str, bos: str = "auto", with_offsets: bool = True) -> EncodedText:
    """Encode a text, with its begin tokens apart from its own.

    Special tokens are put once: where the text begins with the begin token itself, written out as a chat template
    does it, no second one is put before it. What the tokenizer puts after a text (end-of-sequence, [SEP]) is left
    out: nothing ends there.

    Args:
        tokenizer: a transformers tokenizer.
        text: any text; there is no limit on its length and no warning about it.
        bos: "auto" puts in front what the tokenizer puts before a text by default; "yes" does that too, and where it
            is nothing puts the begin-of-sequence token there; "no" puts nothing there.
        with_offsets: ask for character offsets; they take much memory for a long text.

    Returns:
        `EncodedText`.

    Raises:
        ValueError: another `bos`, or "yes" with a tokenizer that has no begin-of-sequence token.
    """
    check_bos(bos)
    ids, special, offsets = _encode(tokenizer, text, with_offsets)
    end = _end(special)
    front = next((i for i in range(end) if not special[i]), end)
    own = ids[front:end]
    begin = [] if bos == "no" else ids[:front] or ([_begin_token(tokenizer)] if bos == "yes" else [])
    brought = 0
    while brought < min(len(begin), len(own)) and own[brought] in begin:
        brought += 1
    spans = None if offsets is None else offsets[front:end]
    start = spans[brought - 1][1] if spans and brought else 0
    return EncodedText(
        own[:brought] or begin, own[brought:], None if spans is None else spans[brought:], start
    )


def encode_text(tokenizer: Any, text: str, bos: str = "auto") -> list[int]:
    """Encode a text with its begin tokens in front of it and nothing after it: see `encode_parts`.

    Args:
        tokenizer: a transformers tokenizer.
        text: any text; there is no limit on its length and no warning about it.
        bos: "auto", "yes" or "no".

    Returns:
        Token ids.
    """
    return encode_parts(tokenizer, text, bos, with_offsets=False).all


def split_continuation(
    tokenizer: Any, prompt: str, continuation: str, bos: str = "auto"
) -> tuple[list[int], list[int]]:
    """Encode `prompt + continuation` as one string and cut the ids where the continuation begins.

    One string is encoded because many tokenizers merge across the boundary when the parts are encoded alone.
    A token belongs to the continuation when its last character does. Without character offsets (slow
    tokenizers) the cut is where the whole begins to differ from the encoded prompt. Where the tokenizer drops
    characters of the prompt, which makes its offsets wrong, the cut is that of the text without them.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: the text before the cut.
        continuation: the text after it, with what stands between the two.
        bos: whether begin tokens are put in front: see `encode_parts`.

    Returns:
        `(prompt_ids, continuation_ids)`; their concatenation is the encoding of the whole string, without
        special tokens after its end.

    Raises:
        ValueError: the continuation has no token, or no token comes before it; or the tokenizer drops characters of
            the continuation.
    """
    begin, ids, offsets, _ = encode_parts(tokenizer, prompt + continuation, bos)
    if dropped := dropped_characters(tokenizer, prompt + continuation):
        cut = len(ids) - _tail(tokenizer, prompt, continuation, bos, dropped, ids)
    elif offsets is None:
        alone = encode_parts(tokenizer, prompt, bos, with_offsets=False).ids if prompt else []
        cut = common_length(alone, ids)
    else:
        cut = _first_behind(offsets, len(prompt))
    if cut >= len(ids):
        raise ValueError(
            f"The continuation {continuation!r} has no token of its own. It must add text after the prompt."
        )
    if not begin and cut == 0:
        raise ValueError(
            f"The prompt {prompt!r} has no token, so nothing predicts the first token of {continuation!r}. "
            "Give a non-empty prompt, or a tokenizer that adds a begin-of-sequence token."
        )
    return begin + ids[:cut], ids[cut:]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens that both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _first_behind(offsets: Sequence[tuple[int, int]], length: int) -> int:
    """The first token whose last character stands after `length` characters."""
    return next((i for i, (_, end) in enumerate(offsets) if end > length), len(offsets))


def _tail(tokenizer: Any, prompt: str, continuation: str, bos: str, dropped: set[str], ids: list[int]) -> int:
    """How many of the last ids are the continuation's, found in the text without the dropped characters."""
    shown = ", ".join(map(repr, sorted(dropped)[:3]))
    if any(character in dropped for character in continuation if not character.isspace()):
        raise ValueError(
            f"The tokenizer has no tokens for characters of {continuation!r} ({shown}) and drops them: another text "
            "would be asked about. Use a model that knows them, or another wording."
        )
    kept, rest = ("".join(c for c in text if c not in dropped) for text in (prompt, continuation))
    clean = encode_parts(tokenizer, kept + rest, bos)
    assert clean.offsets is not None  # slow tokenizers are not known to drop anything
    number = len(clean.ids) - _first_behind(clean.offsets, len(kept))
    if clean.ids[len(clean.ids) - number :] != ids[len(ids) - number :]:
        raise ValueError(
            f"The tokenizer drops characters of the prompt {prompt[-60:]!r} ({shown}), and where {continuation!r} "
            "begins in its tokens cannot be determined. Leave these characters out of the prompt."
        )
    return number


def _encode(
    tokenizer: Any, text: str, with_offsets: bool
) -> tuple[list[int], list[int], list[tuple[int, int]] | None]:
    """Give ids, flags of added special tokens, and character offsets where the tokenizer has them."""
    check_text(text, "The text")
    with_offsets = with_offsets and bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(
        text, return_offsets_mapping=with_offsets, return_special_tokens_mask=True, verbose=False
    )
    offsets = [tuple(pair) for pair in encoded["offset_mapping"]] if with_offsets else None
    return list(encoded["input_ids"]), list(encoded["special_tokens_mask"]), offsets


def _begin_token(tokenizer: Any) -> int:
    token = getattr(tokenizer, "bos_token_id", None)
    if token is None:
        raise ValueError(
            f"bos is 'yes', but this tokenizer ({type(tokenizer).__name__}) has no begin-of-sequence token. Use "
            "bos='auto', or set its bos_token."
        )
    return int(token)


def _end(special: list[int]) -> int:
    """Length without the special tokens after the text."""
    end = len(special)
    while end and special[end - 1]:
        end -= 1
    return end
