"""From texts to samples: which tokens are supervised."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from tomfisher.runtime.torch_state import plain_torch
from tomfisher.sample import IGNORED, Sample
from tomfisher.tasks.gap import AUTO
from tomfisher.tasks.story import Story
from tomfisher.tasks.wording import Wording
from tomfisher.text_files import check_text
from tomfisher.tokens import leading_specials
from tomfisher.unknown import warn_of_dropped_characters, warn_of_unknown_tokens

Text: TypeAlias = "Story | str | tuple[str, str]"
MODES = ("answer", "last", "all")


@plain_torch()
def encode(
    tokenizer: Any,
    texts: Sequence[Text],
    supervise: str = "answer",
    max_length: int | None = None,
    gap: str = AUTO,
    bos: str = "auto",
    chat_template: bool = False,
    system: str | None = None,
) -> list[Sample]:
    """Turn stories, (prompt, answer) pairs or plain texts into samples.

    - "answer": prompt, gap, answer; the tokens of gap and answer are supervised.
    - "last": the prompt alone (a plain text: the text), its last token is supervised. This is what
      arXiv 2504.04238 does.
    - "all": prompt, gap, answer (a plain text: the text); every token is supervised.

    Texts are taken as they are written; what the tokenizer puts after a text is dropped.

    Args:
        tokenizer: a transformers tokenizer.
        texts: `Story` objects, (prompt, answer) pairs or strings.
        supervise: "answer", "last" or "all".
        max_length: longest sample, in tokens. Longer ones lose their beginning ("answer", "last"; leading special
            tokens stay) or their end ("all"), and a `UserWarning` says how many did.
        gap: what stands between prompt and answer: "auto" (a story's own, else one space where the writing has
            spaces), "space", "none", "newline" or a text without letters and digits.
        bos: begin-of-sequence token in front: "auto" (as the tokenizer does for a text), "yes" or "no".
        chat_template: every prompt, or plain text, becomes the user's turn in the tokenizer's chat template.
        system: the system's turn before it.

    The last four are those of an evaluation: see `tomfisher.tasks.wording.Wording`.

    Returns:
        One sample per text, in order.

    Raises:
        TypeError: a text is none of the three kinds.
        ValueError: unknown mode, an empty text, a plain text with "answer", `max_length` too small for the answer and
            one token before it, or for a text in a chat template: with the index of the text; a setting that is none,
            or that the tokenizer cannot follow.
    """
    wording = Wording(gap, bos, chat_template, system)
    if supervise not in MODES:
        raise ValueError(f"supervise must be one of {', '.join(MODES)}, got {supervise!r}.")
    if isinstance(texts, (str, Story)):
        raise TypeError(f"texts must be a list, got one {type(texts).__name__}. Pass [text].")
    if max_length is not None and max_length < 2:
        raise ValueError(
            f"max_length must be at least 2 tokens, because the first token is never predicted, got {max_length}."
        )
    if chat_template and supervise == "last":
        warnings.warn(
            'supervise="last" with a chat template: the one supervised token is the template\'s own last one, the same '
            'in every text. supervise="answer" takes the answers.',
            UserWarning,
            stacklevel=2,
        )
    samples, truncated = [], 0
    for index, text in enumerate(texts):
        ids, supervised = _encode_one(tokenizer, text, index, supervise, wording)
        if max_length is not None and len(ids) > max_length:
            if chat_template:
                raise ValueError(
                    f"Text {index} has {len(ids)} tokens in the chat template, max_length is {max_length}: cutting it "
                    "would cut the template. Leave long texts out, raise max_length, or leave the template out."
                )
            truncated += 1
            ids, supervised = _truncate(tokenizer, ids, supervised, supervise, max_length, index)
        labels = [IGNORED] * (len(ids) - supervised) + ids[len(ids) - supervised :]
        name = text.id if isinstance(text, Story) else f"text {index}"
        samples.append(Sample(torch.tensor(ids), torch.tensor(labels), name))
    if truncated:
        side = "ends were" if supervise == "all" else "beginnings were"
        warnings.warn(
            f"{truncated} of {len(texts)} texts are longer than max_length={max_length} tokens; their {side} cut off.",
            UserWarning,
            stacklevel=2,
        )
    warn_of_unknown_tokens(tokenizer, [sample.input_ids.tolist() for sample in samples], "the texts")
    warn_of_dropped_characters(tokenizer, (_parts(text, i)[0] for i, text in enumerate(texts)), "the texts")
    return samples


def _encode_one(
    tokenizer: Any, text: Text, index: int, supervise: str, wording: Wording
) -> tuple[list[int], int]:
    """Give the ids of one text and how many of the last ones are supervised."""
    written, answer, own = _parts(text, index)
    check_text(written + (answer or ""), f"Text {index}")
    if not written.strip():
        raise ValueError(f"Text {index} is empty. Remove it, or give it a prompt.")
    if supervise == "answer" and answer is None:
        raise ValueError(
            f'Text {index} is a plain string and has no answer to supervise. Use supervise="last" or "all", '
            "or pass (prompt, answer) pairs."
        )
    if answer is not None and supervise != "last" and not answer.strip():
        raise ValueError(f"Text {index} has an empty answer. Give the text to predict.")
    prompt = wording.prompt(tokenizer, written)
    if answer is None or supervise == "last":
        ids = wording.encode(tokenizer, prompt)
    else:
        before, after = wording.split(tokenizer, prompt, answer, own)
        if supervise == "answer":
            return before + after, len(after)
        ids = before + after
    if len(ids) < 2:
        raise ValueError(
            f"Text {index} ({prompt!r}) has {len(ids)} token(s); at least 2 are needed, because the first token is "
            "never predicted. Use a longer text."
        )
    return ids, 1 if supervise == "last" else len(ids)


def _parts(text: Text, index: int) -> tuple[str, str | None, str]:
    """Prompt, answer and gap of a text."""
    if isinstance(text, Story):
        return text.prompt, text.answer_text, text.gap
    if isinstance(text, str):
        return text, None, AUTO
    if isinstance(text, (tuple, list)) and len(text) == 2 and all(isinstance(part, str) for part in text):
        return text[0], text[1], AUTO
    raise TypeError(
        f"Text {index} must be a Story, a string or a (prompt, answer) pair, got {type(text).__name__}."
    )


def _truncate(
    tokenizer: Any, ids: list[int], supervised: int, supervise: str, max_length: int, index: int
) -> tuple[list[int], int]:
    """Cut to `max_length` ids; the count of supervised ones at the end is adapted."""
    if supervise == "all":
        return ids[:max_length], max_length
    front = leading_specials(tokenizer, ids)
    if supervised + max(front, 1) > max_length:
        raise ValueError(
            f"max_length={max_length} leaves no room for text {index}: its supervised part has {supervised} token(s) "
            f"and {max(front, 1)} must stand before it. Use max_length >= {supervised + max(front, 1)}."
        )
    return ids[:front] + ids[len(ids) - (max_length - front) :], supervised
