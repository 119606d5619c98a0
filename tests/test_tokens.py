from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tokenizer_kinds import byte_level
from tomfisher.tokens import encode_text, leading_specials, split_continuation

TEXT = "the cat sat in the old barn and the dog sat in the new barn"


@pytest.fixture(scope="module")
def bpe() -> Any:
    return byte_level([TEXT] * 5, 300)


@pytest.fixture(scope="module")
def wrapped() -> Any:
    """Characters as tokens, <s> in front and </s> behind."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *" abcdefghijklmnopqrstuvwxyz"])
    }
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def slow_tokenizer() -> Any:
    """The same characters without offsets: a tokenizer written in Python."""
    from transformers import PreTrainedTokenizer

    class Characters(PreTrainedTokenizer):
        def __init__(self, **kwargs: Any) -> None:
            letters = ["<unk>", "<s>", "</s>", *" abcdefghijklmnopqrstuvwxyz"]
            self.table = {token: i for i, token in enumerate(letters)}
            super().__init__(bos_token="<s>", eos_token="</s>", unk_token="<unk>", **kwargs)

        @property
        def vocab_size(self) -> int:
            return len(self.table)

        def get_vocab(self) -> dict[str, int]:
            return dict(self.table)

        def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
            return list(text)

        def _convert_token_to_id(self, token: str) -> int:
            return self.table.get(token, 0)

        def _convert_id_to_token(self, index: int) -> str:
            return list(self.table)[index]

        def build_inputs_with_special_tokens(self, first: list[int], second: Any = None) -> list[int]:
            return [1, *first, 2]

        def get_special_tokens_mask(
            self, first: list[int], second: Any = None, already_has_special_tokens: bool = False
        ) -> list[int]:
            if already_has_special_tokens:
                return [int(i in (1, 2)) for i in first]
            return [1, *[0] * len(first), 1]

    return Characters()


def test_parts_join_to_the_encoding_of_the_whole(bpe: Any) -> None:
    prompt, continuation = split_continuation(bpe, "the cat sat in the old", " barn")
    assert prompt + continuation == bpe("the cat sat in the old barn")["input_ids"]
    assert bpe.decode(continuation) == " barn"
    assert bpe.decode(prompt) == "the cat sat in the old"


def test_a_token_across_the_boundary_belongs_to_the_continuation(bpe: Any) -> None:
    whole = bpe.tokenize("the barn")
    assert whole[-1] == "Ġbarn"
    prompt, continuation = split_continuation(bpe, "the ba", "rn")
    assert bpe.decode(continuation) == " barn" and bpe.decode(prompt) == "the"


@pytest.mark.parametrize("prompt", ["the café", "the 🐱 sat", "naïve “cat”"])
def test_characters_of_several_bytes(bpe: Any, prompt: str) -> None:
    before, after = split_continuation(bpe, prompt, " 🐶 barn")
    assert bpe.decode(before) == prompt
    assert bpe.decode(after) == " 🐶 barn"


def test_special_tokens_stay_in_front_and_go_behind(wrapped: Any) -> None:
    prompt, continuation = split_continuation(wrapped, "ab", " cd")
    assert wrapped.convert_ids_to_tokens(prompt) == ["<s>", "a", "b"]
    assert wrapped.convert_ids_to_tokens(continuation) == [" ", "c", "d"]


def test_slow_and_fast_tokenizers_agree(wrapped: Any) -> None:
    slow = slow_tokenizer()
    assert not slow.is_fast and slow("ab")["input_ids"][-1] == 2
    for prompt in ("ab", "a b c", ""):
        assert split_continuation(slow, prompt, " cd") == split_continuation(wrapped, prompt, " cd")
    assert encode_text(slow, "a b") == encode_text(wrapped, "a b")


def test_begin_of_sequence_alone_may_predict(wrapped: Any) -> None:
    prompt, continuation = split_continuation(wrapped, "", "ab")
    assert prompt == [1] and len(continuation) == 2


def test_nothing_to_predict_or_to_predict_from_is_refused(bpe: Any, wrapped: Any) -> None:
    with pytest.raises(ValueError, match="no token of its own"):
        split_continuation(bpe, "the cat", "")
    with pytest.raises(ValueError, match="no token of its own"):
        split_continuation(wrapped, "ab", "")
    with pytest.raises(ValueError, match="nothing predicts"):
        split_continuation(bpe, "", " cat")


def test_encode_text_has_no_special_token_behind(wrapped: Any) -> None:
    assert wrapped("ab")["input_ids"][-1] == 2
    assert wrapped.convert_ids_to_tokens(encode_text(wrapped, "ab")) == ["<s>", "a", "b"]


def test_leading_specials_are_counted(wrapped: Any) -> None:
    assert leading_specials(wrapped, [1, 5, 6, 2]) == 1
    assert leading_specials(wrapped, [5, 1]) == 0
    assert leading_specials(wrapped, [1, 2]) == 2
