"""What every architecture is given: a small random model, ragged samples, stories and a text."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

import tomfisher
from census.configs import NOT_BUILT, VOCABULARY, small_config
from tomfisher.sample import IGNORED
from tomfisher.tasks import Story

MOST_WEIGHTS = 1_000_000
# seed and noise of weights on which float32 does not come close to what is allowed by rounding alone
DRAWN = {"bailing_hybrid": (0, 0.02), "dory": (0, 0.02), "gemma4": (3, 0.05), "gemma4_unified": (2, 0.02)}
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
LANGUAGE = (
    "anna ben clara bag box basket tin full of popcorn chocolate red green apple apples thinks that is in the a "
    "looks sees label says opens closed kitchen garden puts leaves moves back search will for it ball there . ,"
)
WORDS = LANGUAGE.split()
WORDS += [f"word{i}" for i in range(VOCABULARY - len(SPECIALS) - len(WORDS))]


class NotBuilt(Exception):
    """Why an architecture has no small random model."""


def small_model(model_type: str) -> nn.Module:
    """A small random model of an architecture, in evaluation mode; its size is looked at before memory is taken.

    Noise on all parameters takes them off special values (norms at one, biases at zero), at which a wrong gradient
    can look right.
    """
    if model_type in NOT_BUILT:
        raise NotBuilt(NOT_BUILT[model_type])
    try:
        config = small_config(model_type)
        with torch.device("meta"):
            weights = sum(p.numel() for p in tf.AutoModelForCausalLM.from_config(config).parameters())
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {_sentence(error)}") from error
    if weights > MOST_WEIGHTS:
        raise NotBuilt(f"its configuration cannot be made small: {weights:,} weights")
    seed, noise = DRAWN.get(model_type, (0, 0.05))
    torch.manual_seed(seed)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
    return model


def samples() -> list[tomfisher.Sample]:
    """Four samples of 3 to 21 tokens: all tokens supervised, the last alone, and every second one."""
    generator = torch.Generator().manual_seed(2)
    found = []
    for index, length in enumerate((21, 3, 12, 7)):
        ids = torch.randint(len(SPECIALS), VOCABULARY, (length,), generator=generator)
        labels = ids.clone()
        if index == 2:
            labels[:-1] = IGNORED
        if index == 3:
            labels[1:-1:2] = IGNORED
        found.append(tomfisher.Sample(ids, labels, name=f"s{index}"))
    return found


def word_tokenizer() -> Any:
    """One token a word, `<s>` in front of no text."""
    vocabulary = {word: index for index, word in enumerate((*SPECIALS, *WORDS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def stories() -> list[Story]:
    """Two questions about each of two stories with a common beginning, and a third story of another length."""
    told = (
        "in the kitchen there is a bag full of popcorn . anna opens the bag . ben leaves .",
        "in the kitchen there is a bag full of popcorn . the label says chocolate .",
        "ben puts the ball in the tin .",
    )
    asked = ("anna thinks that the bag is full of", "the bag is full of")
    choices = (("popcorn", "chocolate"), ("red apples", "popcorn"), ("a red apple", "ball"))
    return [
        Story(
            text,
            question,
            choices[i],
            answer=j,
            condition="contents/false-belief",
            order=1 - j,
            id=f"{i}/{j}",
        )
        for i, text in enumerate(told)
        for j, question in enumerate(asked)
    ]


TEXTS = [" ".join(WORDS[:30]), " ".join(WORDS[20:33])]


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()).partition(". ")[0]
