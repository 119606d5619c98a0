"""How the testbed model is built and fed: sizes, optimisation settings, training batches."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tomfisher.sample import IGNORED
from tomfisher.testbed import general, language
from tomfisher.testbed.architectures import architecture
from tomfisher.testbed.tokenizer import BEGIN, PAD, word_ids

WINDOWS = (128, 256, 512)
SECOND_ORDER_STEPS = 1500


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the thread count and the torch version.

    Args:
        steps: optimiser steps.
        seed: of the initial weights and of the training text.
        stories: stories per step.
        general_tokens: tokens of general text per step, as windows of 128, 256 or 512 tokens.
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
        architecture: "llama", "qwen2", "mpt", "mamba" or "jamba".
        second_order: tell second-order stories too, as often as those of either first-order family.
        longest_window: of general text, in tokens.
        state: numbers that a state-space layer remembers per channel.

    Raises:
        ValueError: a size that leaves nothing to train on, or an unknown architecture.
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
    architecture: str = "llama"
    second_order: bool = False
    longest_window: int = 512
    state: int = 8

    def __post_init__(self) -> None:
        smallest_of = {"steps": 1, "stories": 1, "general_tokens": 2, "longest_window": 2, "log_every": 1}
        for name, smallest in smallest_of.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {getattr(self, name)}.")
        if not 0 <= self.slips < 0.5:
            raise ValueError(f"slips must be at least 0 and below 0.5, got {self.slips}.")
        architecture(self.architecture)

    @classmethod
    def of(cls, name: str, second_order: bool = False, **given: Any) -> Recipe:
        """The recipe of an architecture: what its table entry sets differently, then what is given."""
        steps = {"steps": SECOND_ORDER_STEPS} if second_order else {}
        settings = {**steps, **architecture(name).settings, **given}
        return cls(architecture=name, second_order=second_order, **settings)

    def config(self) -> Any:
        """The transformers configuration of the model."""
        return architecture(self.architecture).config(self)

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


def _story_line(rng: random.Random, ids: dict[str, int], recipe: Recipe) -> tuple[list[int], list[int]]:
    """One training story with its answered questions, and the positions of the answers."""
    story, asked = language.training_story(rng, recipe.slips, recipe.second_order)
    line = [ids[BEGIN], *(ids[word] for word in story.split())]
    answers = []
    for stem, answer in asked:
        line += [ids[word] for word in stem.split()]
        answers.append(len(line))
        line += [ids[answer], ids["."]]
    return line, answers


def _story_batch(rng: random.Random, ids: dict[str, int], recipe: Recipe) -> Batch:
    """Stories with their answered questions, padded on the right."""
    lines = [_story_line(rng, ids, recipe) for _ in range(recipe.stories)]
    length = max(len(line) for line, _ in lines)
    input_ids = torch.full((recipe.stories, length), ids[PAD])
    labels = torch.full((recipe.stories, length), IGNORED)
    is_answer = torch.zeros((recipe.stories, length), dtype=torch.bool)
    for row, (line, answers) in enumerate(lines):
        input_ids[row, : len(line)] = labels[row, : len(line)] = torch.tensor(line)
        is_answer[row, answers] = True
    return Batch(input_ids, labels, is_answer)


def _general_batch(rng: random.Random, ids: dict[str, int], recipe: Recipe) -> Batch:
    """Windows cut anywhere out of concatenated documents; every other one begins with `<s>`."""
    tokens = recipe.general_tokens
    longest = min(tokens, recipe.longest_window)
    length = rng.choice([size for size in WINDOWS if size <= longest] or [longest])
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
            _story_batch(rng, ids, recipe),
            _general_batch(rng, ids, recipe),
        )
