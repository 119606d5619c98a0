"""A byte-level BPE tokenizer and a word-level one with a begin-of-sequence token, both built here."""

from __future__ import annotations

from typing import Any

import pytest

from tokenizer_kinds import byte_level, word_level

SENTENCES = [
    "Complete the following story: Clara puts the camera in the drawer and leaves for work.",
    "Hugo believes that the jar is full of sugar, but the jar is full of flour.",
    "The label on the box says that there are books inside.",
]


@pytest.fixture(scope="session")
def bpe() -> Any:
    return byte_level(SENTENCES, 400)


@pytest.fixture(scope="session")
def words() -> Any:
    """One token per word; <s> is put in front and </s> behind."""
    known = sorted({word for text in SENTENCES for word in text.replace(".", " ").replace(",", " ").split()})
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = ["<unk>", "<s>", "</s>", *known, "a", "b", "c", "d", "e"]
    return word_level(words, "<s> $A </s>", **names, model_max_length=16)
