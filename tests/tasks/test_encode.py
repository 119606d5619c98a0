from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import tomfisher
from tomfisher.sample import IGNORED, Sample
from tomfisher.tasks import encode, load


def supervised(sample: Sample) -> list[int]:
    return sample.labels[sample.labels != IGNORED].tolist()


def test_the_supervised_tokens_are_exactly_the_answer(bpe: Any) -> None:
    stories = load("false-belief", n=64)
    for story, sample in zip(stories, encode(bpe, stories), strict=True):
        assert bpe.decode(supervised(sample)) == f" {story.answer_text}"
        assert bpe.decode(sample.input_ids) == story.full_text
        count = len(supervised(sample))
        assert torch.equal(sample.labels[-count:], sample.input_ids[-count:])
        assert sample.name == story.id


def test_pairs_get_one_space_and_lose_the_end_token(words: Any) -> None:
    for pair in (("the jar is full of", "sugar"), ("the jar is full of ", " sugar")):
        (sample,) = encode(words, [pair])
        assert words.convert_ids_to_tokens(sample.input_ids.tolist()) == [
            "<s>",
            "the",
            "jar",
            "is",
            "full",
            "of",
            "sugar",
        ]
        assert words.convert_ids_to_tokens(supervised(sample)) == ["sugar"]
    assert sample.name == "text 0"


def test_last_supervises_the_prompts_last_token(words: Any) -> None:
    pair, text = encode(words, [("the jar is full of", "sugar"), "the jar is full"], supervise="last")
    assert words.convert_ids_to_tokens(pair.input_ids.tolist()) == ["<s>", "the", "jar", "is", "full", "of"]
    assert words.convert_ids_to_tokens(supervised(pair)) == ["of"]
    assert words.convert_ids_to_tokens(supervised(text)) == ["full"]


def test_all_supervises_everything(words: Any) -> None:
    pair, text = encode(words, [("the jar is full of", "sugar"), "the jar"], supervise="all")
    assert torch.equal(pair.input_ids, pair.labels) and len(pair) == 7
    assert torch.equal(text.input_ids, text.labels) and len(text) == 3


def test_truncation_keeps_the_end_and_the_first_special_token_and_is_said(words: Any) -> None:
    texts = [("a b c d e a b c", "d"), ("a b", "c")]
    with pytest.warns(
        UserWarning, match="1 of 2 texts are longer than max_length=5 tokens; their beginnings"
    ):
        long, short = encode(words, texts, max_length=5)
    assert words.convert_ids_to_tokens(long.input_ids.tolist()) == ["<s>", "a", "b", "c", "d"]
    assert words.convert_ids_to_tokens(supervised(long)) == ["d"]
    assert len(short) == 4
    with pytest.warns(UserWarning, match="their beginnings"):
        (last,) = encode(words, ["a b c d e"], supervise="last", max_length=3)
    assert words.convert_ids_to_tokens(last.input_ids.tolist()) == ["<s>", "d", "e"]


def test_truncation_of_whole_texts_keeps_the_beginning(words: Any) -> None:
    with pytest.warns(UserWarning, match="1 of 1 texts .* their ends"):
        (sample,) = encode(words, ["a b c d e"], supervise="all", max_length=3)
    assert words.convert_ids_to_tokens(supervised(sample)) == ["<s>", "a", "b"]


def test_what_fits_is_not_warned_about(words: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(encode(words, [("a b", "c")], max_length=4)[0]) == 4


def test_an_answer_is_never_cut(bpe: Any, words: Any) -> None:
    with pytest.raises(ValueError, match=r"no room for text 1: .* 2 token\(s\).*Use max_length >= 3"):
        encode(words, [("a", "b"), ("a b", "c d")], max_length=2)
    answer = len(supervised(encode(bpe, [("the jar", "qwertz")])[0]))
    with pytest.raises(ValueError, match=f"max_length >= {answer + 1}"):
        encode(bpe, [("the jar", "qwertz")], max_length=answer)


@pytest.mark.parametrize("mode", ["last", "all"])
def test_empty_texts_are_named_by_index(bpe: Any, mode: str) -> None:
    with pytest.raises(ValueError, match="Text 1 is empty"):
        encode(bpe, ["the jar is full", " \n"], supervise=mode)


def test_bad_input(bpe: Any) -> None:
    with pytest.raises(ValueError, match="Text 1 is a plain string"):
        encode(bpe, [("a", "b"), "a b"])
    with pytest.raises(ValueError, match="Text 0 has an empty answer"):
        encode(bpe, [("a", " ")])
    with pytest.raises(ValueError, match="Text 0 is empty"):
        encode(bpe, [("", "b")])
    with pytest.raises(ValueError, match=r"Text 0 \('a'\) has 1 token"):
        encode(bpe, ["a"], supervise="all")
    with pytest.raises(ValueError, match="answer, last, all"):
        encode(bpe, ["a b"], supervise="first")
    with pytest.raises(ValueError, match="max_length must be at least 2"):
        encode(bpe, ["a b"], supervise="all", max_length=1)
    with pytest.raises(TypeError, match="Text 0 must be"):
        encode(bpe, [7], supervise="all")  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"Pass \[text\]"):
        encode(bpe, "a b", supervise="all")


def test_it_is_public() -> None:
    assert tomfisher.encode is encode
