from __future__ import annotations

import random

import pytest

from tomfisher.testbed import general, language
from tomfisher.testbed.tokenizer import SPECIALS, build_tokenizer, word_ids


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(0)
    return [
        *(story.full_text for story in language.stories(320)),
        *(story.full_text for story in language.stories(100, split="fisher")),
        *language.corpus(200).documents,
        *(general.document(rng, held_out=False) for _ in range(100)),
    ]


def test_every_text_comes_back_unchanged_and_without_an_unknown_word(texts):
    tokenizer = build_tokenizer()
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        assert ids[0] == tokenizer.bos_token_id
        assert len(ids) == 1 + len(text.split())
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_vocabulary_has_no_word_that_no_text_uses_but_the_reserved_ones():
    rng = random.Random(1)
    used: set[str] = set()
    for _ in range(2000):
        story, asked = language.training_story(rng)
        used.update(story.split(), *(stem.split() for stem, _ in asked), (answer for _, answer in asked))
        used.update(general.document(rng, held_out=False).split())
    assert used == set(language.vocabulary()) - set(language.RESERVED)
    assert list(word_ids().values()) == list(range(len(SPECIALS) + len(language.vocabulary())))


def test_unknown_words_become_the_unknown_token():
    tokenizer = build_tokenizer()
    assert tokenizer("anna hesitates")["input_ids"][-1] == tokenizer.unk_token_id


def test_saved_tokenizer_is_loaded_by_auto_tokenizer(tmp_path, texts):
    from transformers import AutoTokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast
    assert loaded.padding_side == "right"
    assert loaded.model_max_length == 512
    assert (loaded.pad_token, loaded.unk_token, loaded.bos_token, loaded.eos_token) == SPECIALS
    assert loaded(texts[:50])["input_ids"] == tokenizer(texts[:50])["input_ids"]
