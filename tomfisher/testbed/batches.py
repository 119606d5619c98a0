"""The training text of a testbed model, in batches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tomfisher.sample import IGNORED
from tomfisher.testbed import general, language
from tomfisher.testbed.recipe import Recipe
from tomfisher.testbed.tokenizer import BEGIN, PAD, word_ids

WINDOWS = (128, 256, 512)


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
