"""The word-level tokenizer of the false-belief language."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tomfisher.testbed import language

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<s>", "</s>"
MAX_LENGTH = 512
SPECIALS = (PAD, UNKNOWN, BEGIN, END)


def word_ids() -> dict[str, int]:
    """Token id of every word: the four special tokens, then the vocabulary in alphabetical order."""
    return {word: index for index, word in enumerate((*SPECIALS, *language.vocabulary()))}


def build_tokenizer(max_length: int = MAX_LENGTH) -> PreTrainedTokenizerFast:
    """Build a fast transformers tokenizer with one token per word.

    Text is cut at white space, `<s>` is put in front, and decoding joins words by one space, so every text of
    the language comes back unchanged. `save_pretrained` makes it loadable with `AutoTokenizer`.

    Args:
        max_length: longest sequence the model takes, in tokens.

    Returns:
        The tokenizer, with pad, unknown, begin and end tokens set and right padding.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    ids = word_ids()
    core = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    core.pre_tokenizer = WhitespaceSplit()
    core.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, ids[BEGIN])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        padding_side="right",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
