"""Texts that a tokenizer has no tokens for: unknown tokens are said, dropped characters never move an answer."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tomfisher
import tomfisher.evaluate
from tokenizer_kinds import word_level
from tomfisher.evaluate import perplexity
from tomfisher.sample import IGNORED
from tomfisher.tasks import corpus
from tomfisher.tasks.story import Story
from tomfisher.tokens import split_continuation
from tomfisher.unknown import dropped_characters

LETTERS = "abcdefghijklmnopqrstuvwxyz ."
RUSSIAN = "Кошка сидела на ковре и смотрела на луну. " * 5
WORDS = ("the", "cup", "is", "in", "box", "drawer")


def spelling(
    cut: Any = None, space: str = " ", suffix: str | None = None, prefix: str | None = None, **more: str
) -> Any:
    """A byte-pair encoding of small letters that knows nothing else."""
    letters = [c if c != " " else space for c in LETTERS]
    ends = [f"{c}{suffix}" for c in letters] if suffix else []
    within = [f"{prefix}{c}" for c in letters] if prefix else []
    vocabulary = {token: i for i, token in enumerate(["</s>", *letters, *ends, *within])}
    settings = {"end_of_word_suffix": suffix, "continuing_subword_prefix": prefix, **more}
    given = {name: value for name, value in settings.items() if value is not None}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], **given))
    if cut is not None:
        core.pre_tokenizer = cut
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="</s>")


DROPPING = {
    "no cut": spelling(),
    "white space apart": spelling(pre_tokenizers.Split(" ", "isolated")),
    "space before a word": spelling(pre_tokenizers.Split(" ", "merged_with_next")),
    "bytes": spelling(pre_tokenizers.ByteLevel(add_prefix_space=False), space="Ġ"),
    "metaspace": spelling(pre_tokenizers.Metaspace(prepend_scheme="never"), space="▁"),
    "ends of words": spelling(pre_tokenizers.Split(" ", "isolated"), suffix="</w>"),
    "within words": spelling(pre_tokenizers.Split(" ", "isolated"), prefix="##"),
}


def letters_of(tokenizer: Any, ids: Any) -> str:
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    bare = "".join(token.removesuffix("</w>").removeprefix("##") for token in tokens)
    return bare.replace("Ġ", " ").replace("▁", " ")


def model(vocabulary: int = 96) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes)).eval()


@pytest.mark.parametrize("tokenizer", DROPPING.values(), ids=list(DROPPING))
@pytest.mark.parametrize(
    "prompt", ["the cafe is in the", "the café is in the", "ça Ça", "it is in Ж", "où ☃ 🐱"]
)
def test_the_answers_tokens_are_its_own_whatever_the_prompt_loses(tokenizer: Any, prompt: str) -> None:
    before, after = split_continuation(tokenizer, prompt, " box")
    assert letters_of(tokenizer, after) == " box"
    assert letters_of(tokenizer, before) == "".join(c for c in prompt if c in LETTERS)
    assert before + after == tokenizer(prompt + " box")["input_ids"]


@pytest.mark.parametrize("tokenizer", DROPPING.values(), ids=list(DROPPING))
def test_an_answer_that_loses_characters_is_refused(tokenizer: Any) -> None:
    for answer in (" café", " Box", " ящик"):
        with pytest.raises(ValueError, match="another text would be asked about"):
            split_continuation(tokenizer, "it is in the", answer)


@pytest.mark.parametrize("tokenizer", DROPPING.values(), ids=list(DROPPING))
def test_dropped_characters_are_said_with_their_share(tokenizer: Any) -> None:
    story = Story("the Café is in the", "", ("box", "drawer"), 0, "c", 1, "a", "{story}")
    said = r"no tokens for 11.1% of the characters of the {} \(such as 'C', 'é'\)"
    with pytest.warns(UserWarning, match=said.format("questions")):
        (record,) = tomfisher.evaluate.score(model(), tokenizer, [story], progress=False).records
    assert record.num_tokens == (4, 7)
    with pytest.warns(UserWarning, match=said.format("texts")):
        (sample,) = tomfisher.encode(tokenizer, [story])
    assert letters_of(tokenizer, sample.labels[sample.labels != IGNORED].tolist()) == " box"
    with pytest.warns(UserWarning, match=r"no tokens for 78\.6% of the characters of the text"):
        perplexity(model(), tokenizer, RUSSIAN, window=32, progress=False)
    text = corpus.Corpus("cats", [RUSSIAN], "")
    with pytest.warns(UserWarning, match=r"no tokens for 78\.6% of the characters of cats"):
        corpus.windows(tokenizer, text, 8, 2)


def test_what_is_not_lost_is_not_said() -> None:
    lower = spelling(cut=None)
    lower.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tagged = spelling()
    tagged.add_tokens([AddedToken("<｜Q｜>", special=True)])
    known = spelling(unk_token="</s>")
    spaces = spelling(pre_tokenizers.WhitespaceSplit())
    for tokenizer, text in (
        (lower, "the CAFÉ"),
        (tagged, "<｜Q｜>the"),
        (known, "the Café"),
        (spaces, "a\n\tb"),
    ):
        assert dropped_characters(tokenizer, text) == set()
    assert dropped_characters(tagged, "<｜Q｜>the｜") == {"｜"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tomfisher.encode(lower, [("the CAFÉ is in the", "box")])


def test_unknown_words_are_said_of_every_kind_of_text() -> None:
    tokenizer = word_level(["<unk>", "</s>", *WORDS], unk_token="<unk>", eos_token="</s>")
    said = "of the tokens of {} are unknown to this model's tokenizer"
    with pytest.warns(UserWarning, match="8[0-9]% " + said.format("the texts")):
        tomfisher.encode(tokenizer, [("кошка сидела на ковре в", "box")])
    with pytest.warns(UserWarning, match="100% " + said.format("the text")):
        perplexity(model(), tokenizer, RUSSIAN, progress=False)
    with pytest.warns(UserWarning, match="100% " + said.format("cats")):
        corpus.windows(tokenizer, corpus.Corpus("cats", [RUSSIAN], ""), 8, 2)
