"""Tokenizers of several kinds, trained here on a few sentences in several scripts."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = (
    "The cup is in the cupboard, and the pen is in the drawer.",
    "Anna thinks that the ball is in the basket. Ben looks into the box.",
    "小明把球放进了篮子。小红把书放在了桌子上。他打开盒子。",
    "ボールは箱の中にあります。",
    "ลูกบอลอยู่ในตะกร้า กล่องว่างเปล่า",
    "गेंद टोकरी में है। डिब्बा खाली है।",
    "الكرة في السلة، والصندوق فارغ.",
    "Cupboard. Drawer. Box. Basket.",
    "<u>Where is the ball?\n<a>\nbasket",
)
KINDS = ("byte-level", "byte-level with begin", "unigram", "metaspace bpe", "wordpiece", "words")
CHAT = (
    "{{ bos_token or '' }}{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


@functools.cache
def tokenizer_of(kind: str, end: bool = False) -> Any:
    """A fast tokenizer; those that put `<s>` (or `[CLS]`) in front put `</s>` (`[SEP]`) behind with `end`."""
    from transformers import PreTrainedTokenizerFast

    core, begin = Tokenizer.from_str(_trained(kind)), kind != "byte-level"
    first, last = ("[CLS]", "[SEP]") if kind == "wordpiece" else ("<s>", "</s>")
    if begin:
        core.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}" if end else f"{first} $A",
            special_tokens=[(token, core.token_to_id(token)) for token in (first, last)],
        )
    unknown = {"wordpiece": "[UNK]", "byte-level": None}.get(kind, "<unk>")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=first if begin else None, eos_token=last, unk_token=unknown
    )


def byte_level(sentences: Sequence[str], size: int) -> Any:
    """A byte-level BPE trained on these sentences, without special tokens."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=_byte_level(sentences, size, ()))


def word_level(words: Iterable[str], wrap: str = "", **names: Any) -> Any:
    """A token for every word, numbered in order; `wrap`, as "<s> $A </s>", says what is put around a text.

    Args:
        words: each once, special tokens among them.
        wrap: a template of `tokenizers`.
        names: what the special tokens are for, such as `unk_token="<unk>"`.
    """
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(ids, unk_token=names.get("unk_token", "<unk>")))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if wrap:
        around = [(token, ids[token]) for token in wrap.split() if token in ids]
        core.post_processor = processors.TemplateProcessing(single=wrap, special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


@functools.cache
def _trained(kind: str) -> str:
    """Two trainings may number the tokens differently."""
    return _CORES[kind]().to_str()


def _byte_level(
    sentences: Sequence[str] = SENTENCES, size: int = 420, specials: Sequence[str] = ("<s>", "</s>", "<unk>")
) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=list(specials), show_progress=False
    )
    core.train_from_iterator(sentences, trainer)
    return core


def _unigram() -> Tokenizer:
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(SENTENCES * 3, trainer)
    return core


def _metaspace_bpe() -> Tokenizer:
    """As Llama-2's: a space is put before the whole text, bytes stand for what is unknown."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    names = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=names, show_progress=False)
    core.train_from_iterator([part for text in SENTENCES for part in text.split()] * 2, trainer)
    return core


def _wordpiece() -> Tokenizer:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(strip_accents=False)
    core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[CLS]", "[SEP]", "[UNK]"], show_progress=False
    )
    core.train_from_iterator(SENTENCES, trainer)
    return core


def _words() -> Tokenizer:
    known = {word for text in SENTENCES for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)}
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", *sorted(known)])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return core


_CORES = {
    "byte-level": _byte_level,
    "byte-level with begin": _byte_level,
    "unigram": _unigram,
    "metaspace bpe": _metaspace_bpe,
    "wordpiece": _wordpiece,
    "words": _words,
}
