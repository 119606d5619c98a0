"""What a tokenizer has no tokens for: unknown tokens, and characters that it drops."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

TOLERATED_UNKNOWN = 0.1
_verdicts: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()


def warn_of_unknown_tokens(tokenizer: Any, texts: Sequence[Sequence[int]], what: str) -> None:
    """Warn when more than a tenth of the texts' tokens are the tokenizer's "unknown" token.

    Args:
        tokenizer: a transformers tokenizer; one without an unknown token knows every text, or drops what it does not
            know (`warn_of_dropped_characters`).
        texts: their ids.
        what: what to call them.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    total = sum(map(len, texts))
    if unknown is None or not total:
        return
    share = sum(list(ids).count(unknown) for ids in texts) / total
    if share > TOLERATED_UNKNOWN:
        warnings.warn(
            f"{share:.0%} of the tokens of {what} are unknown to this model's tokenizer: what follows says little "
            "about the texts. Use a model that knows their words.",
            stacklevel=2,
        )


def warn_of_dropped_characters(tokenizer: Any, texts: Iterable[str], what: str) -> None:
    """Warn when the tokenizer drops characters of the texts other than white space, with their share.

    Args:
        tokenizer: a transformers tokenizer.
        texts: the texts.
        what: what to call them.
    """
    size, dropped, examples = 0, 0, set()
    for text in texts:
        size += len(text)
        if found := {c for c in dropped_characters(tokenizer, text) if not c.isspace()}:
            examples |= found
            dropped += sum(map(text.count, found))
    if dropped:
        shown = ", ".join(map(repr, sorted(examples)[:3]))
        warnings.warn(
            f"This model's tokenizer has no tokens for {dropped / size:.1%} of the characters of {what} (such as "
            f"{shown}) and drops them: the model does not see them. Use a model that knows their script.",
            stacklevel=2,
        )


def dropped_characters(tokenizer: Any, text: str) -> set[str]:
    """The characters of a text that leave no token behind.

    A byte-pair encoding without unknown token and byte fallback drops what is not in its vocabulary, and its
    character offsets after the gap lie too far left. What a normalizer takes out on purpose is not among them.

    Args:
        tokenizer: a transformers tokenizer; of the slow ones nothing is known.
        text: any text.

    Returns:
        The characters, each once.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    model: Any = getattr(core, "model", None)
    if type(model).__name__ != "BPE" or model.unk_token is not None:
        return set()
    verdicts = _verdicts.setdefault(tokenizer, {})
    characters = set(text)
    for character in characters - verdicts.keys():
        verdicts[character] = _lacks_tokens(core, character)
    suspects = {character for character in characters if verdicts[character]}
    if not suspects:
        return suspects
    for token in tokenizer.get_added_vocab():
        text = text.replace(token, "")  # these are found before the encoding is asked
    return suspects & set(text) if _lacks_tokens(core, text) else set()


def _lacks_tokens(core: Any, text: str) -> bool:
    """Whether the tokens of some piece of the text, as it is normalized and cut, are shorter than the piece."""
    model = core.model
    written = core.normalizer.normalize_str(text) if core.normalizer else text
    pieces = core.pre_tokenizer.pre_tokenize_str(written) if core.pre_tokenizer else [(written, None)]
    prefix, suffix = model.continuing_subword_prefix or "", model.end_of_word_suffix or ""
    for piece, _ in pieces:
        values = [token.value for token in model.tokenize(piece)]
        if sum(len(value.removeprefix(prefix).removesuffix(suffix)) for value in values) < len(piece):
            return True
    return False
