"""How the testbed model is built and fed: sizes, optimisation settings, training batches."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tomfisher.sample import IGNORED
from tomfisher.testbed import general, language
from tomfisher.testbed.tokenizer import BEGIN, END, MAX_LENGTH, PAD, word_ids

if TYPE_CHECKING:
    from transformers import LlamaConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the thread count and the torch version.

    Args:
        steps: optimiser steps.
        seed: of the initial weights and of the training text.
        stories: stories per step.
        general_tokens: tokens of general text per step, as windows of 128, 256 or 512.
        answer_weight: the mean loss of the answer tokens is added to the mean loss of all tokens, times this.
        slips: fraction of the training answers that are wrong, evenly over conditions and questions. It keeps the
            model's certainty bounded, so that no story's gradient vanishes and the Fisher diagonal of right
            answers sees all of them; held-out stories have none.
        learning_rate: peak of AdamW's rate; linear warm-up, then cosine decay to a tenth.
        warmup: warm-up steps.
        weight_decay: of the weight matrices.
        log_every: steps between two entries of the log.
        hidden: model width.
        intermediate: width of the feed-forward layers.
        layers: decoder layers.
        heads: attention heads.

    Raises:
        ValueError: a size that leaves nothing to train on.
    """

    steps: int = 1200
    seed: int = 1
    stories: int = 32
    general_tokens: int = 512
    answer_weight: float = 1.0
    slips: float = 0.1
    learning_rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 1.0
    log_every: int = 250
    hidden: int = 128
    intermediate: int = 256
    layers: int = 4
    heads: int = 4

    def __post_init__(self) -> None:
        for name, smallest in {"steps": 1, "stories": 1, "general_tokens": 2, "log_every": 1}.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {getattr(self, name)}.")
        if not 0 <= self.slips < 0.5:
            raise ValueError(f"slips must be at least 0 and below 0.5, got {self.slips}.")

    def config(self) -> LlamaConfig:
        """The transformers configuration of the model."""
        from transformers import LlamaConfig

        ids = word_ids()
        return LlamaConfig(
            vocab_size=len(ids),
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=ids[BEGIN],
            eos_token_id=ids[END],
            pad_token_id=ids[PAD],
        )

    def rate(self, step: int) -> float:
        """Learning rate of optimiser step `step` (from 0)."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


class Batch(NamedTuple):
    """Token ids and labels (-100 = not supervised), int64, and which tokens are answers, bool: `[rows, length]`."""

    input_ids: Tensor
    labels: Tensor
    answers: Tensor


def _story_line(rng: random.Random, ids: dict[str, int], slips: float) -> tuple[list[int], list[int]]:
    """One training story with its answered questions, and the positions of the answers."""
    story, asked = language.training_story(rng, slips)
    line = [ids[BEGIN], *(ids[word] for word in story.split())]
    answers = []
    for stem, answer in asked:
        line += [ids[word] for word in stem.split()]
        answers.append(len(line))
        line += [ids[answer], ids["."]]
    return line, answers


def _story_batch(rng: random.Random, ids: dict[str, int], rows: int, slips: float) -> Batch:
    """Stories with their answered questions, padded on the right."""
    lines = [_story_line(rng, ids, slips) for _ in range(rows)]
    length = max(len(line) for line, _ in lines)
    input_ids = torch.full((rows, length), ids[PAD])
    labels = torch.full((rows, length), IGNORED)
    is_answer = torch.zeros((rows, length), dtype=torch.bool)
    for row, (line, answers) in enumerate(lines):
        input_ids[row, : len(line)] = labels[row, : len(line)] = torch.tensor(line)
        is_answer[row, answers] = True
    return Batch(input_ids, labels, is_answer)


def _general_batch(rng: random.Random, ids: dict[str, int], tokens: int) -> Batch:
    """Windows cut anywhere out of concatenated documents; every other one begins with `<s>`."""
    length = rng.choice([size for size in (128, 256, 512) if size <= tokens] or [tokens])
    lines = []
    for row in range(tokens // length):
        words: list[str] = []
        skipped = rng.randrange(64)
        while len(words) < skipped + length:
            words += general.document(rng, held_out=False).split()
        line = [ids[word] for word in words[skipped : skipped + length]]
        lines.append([ids[BEGIN], *line[:-1]] if row % 2 else line)
    windows = torch.tensor(lines)
    return Batch(windows, windows, torch.zeros_like(windows, dtype=torch.bool))


def batches(recipe: Recipe) -> Iterator[tuple[Batch, Batch]]:
    """Generate the training text, a pure function of the seed.

    Args:
        recipe: its seed and batch sizes.

    Yields:
        One (stories, general text) pair per step, without end.
    """
    rng = random.Random(f"tomfisher.testbed:training:{recipe.seed}")
    ids = word_ids()
    while True:
        yield (
            _story_batch(rng, ids, recipe.stories, recipe.slips),
            _general_batch(rng, ids, recipe.general_tokens),
        )
