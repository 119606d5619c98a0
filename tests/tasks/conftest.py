"""A byte-level BPE tokenizer and a word-level one with a begin-of-sequence token, both built here."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SENTENCES = [
    "Complete the following story: Clara puts the camera in the drawer and leaves for work.",
    "Hugo believes that the jar is full of sugar, but the jar is full of flour.",
    "The label on the box says that there are books inside.",
]


@pytest.fixture(scope="session")
def bpe() -> Any:
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.fixture(scope="session")
def words() -> Any:
    """One token per word; <s> is put in front and </s> behind."""
    from transformers import PreTrainedTokenizerFast

    known = sorted({word for text in SENTENCES for word in text.replace(".", " ").replace(",", " ").split()})
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *known, "a", "b", "c", "d", "e"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )
