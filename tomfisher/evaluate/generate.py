"""Free completion: does the first word that the model writes match the answer?"""

from __future__ import annotations

import contextlib
import hashlib
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tomfisher.evaluate.choice import check_stories, make_record
from tomfisher.evaluate.records import Record, Scores
from tomfisher.progress import progress_bar
from tomfisher.runtime.forward import device_of, measuring
from tomfisher.runtime.gate import check_ids, check_length, check_model, plain_torch, why_not_finite
from tomfisher.tokens import encode_text

BATCH_SIZE = 32


@plain_torch()
def score_generate(
    model: Any,
    tokenizer: Any,
    stories: Iterable[Any],
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetitions: int = 1,
    max_new_tokens: int = 5,
    seed: int = 0,
) -> Scores:
    """Let the model complete every prompt and compare the first word with the answer's.

    Words are compared without case and surrounding punctuation. Prompts of one batch have equal length, so
    nothing is padded. The draws of a story depend on `seed`, its id and the number of the repetition, not on the
    other stories or the batch size. At temperature 0 the likeliest token is taken every time, so there is
    nothing to repeat and each story is completed once.

    Args:
        model: a causal language model of transformers; its own generation settings are set aside, except its
            end-of-sequence tokens.
        tokenizer: its tokenizer; no padding token is needed.
        stories: objects with `id, group, condition, cell, kind, prompt, choices, answer`.
        batch_size: number of completions in one batch.
        progress: show a bar on a terminal.
        temperature: 0 for greedy, else the logits' divisor (the paper: 0.6).
        top_p: keep the smallest set of tokens with at least this probability, in (0, 1] (the paper: 0.9).
        repetitions: completions per story when sampling (the paper: 5).
        max_new_tokens: tokens to write (the paper: 5).
        seed: of the draws.

    Returns:
        `Scores`; a record's `correct` is the mean over its repetitions and `predicted` the first one's word.

    Raises:
        ValueError: a setting out of range, an unusable story, a choice that begins with the answer's first word,
            a prompt without tokens or too long for the model, or logits that are NaN (the story is named).
    """
    _check_settings(batch_size, temperature, top_p, repetitions, max_new_tokens)
    chosen = tuple(stories)
    check_stories(chosen)
    targets = [_target(story) for story in chosen]
    prompts = [_encode_prompt(tokenizer, story) for story in chosen]
    check_model(model)
    check_ids(model, prompts, lambda i: f"Story {chosen[i].id!r}")
    longest = max(range(len(chosen)), key=lambda i: len(prompts[i]))
    # the last written token is never fed back
    check_length(
        model, len(prompts[longest]) + max_new_tokens - 1, f"Story {chosen[longest].id!r} with its completion"
    )
    times = repetitions if temperature > 0 else 1
    jobs = sorted(
        ((i, r) for i in range(len(chosen)) for r in range(times)), key=lambda j: len(prompts[j[0]])
    )
    words: dict[tuple[int, int], str] = {}
    bar = progress_bar(total=len(jobs), desc="generate", unit="completion", enabled=progress)
    with measuring(model), _own_settings(model, tokenizer, max_new_tokens), bar:
        for batch in _equal_lengths(jobs, prompts, batch_size):
            draw = _Draw(model, [(chosen[i].id, r) for i, r in batch], temperature, top_p, seed)
            for job, text in zip(
                batch, _complete(model, tokenizer, [prompts[i] for i, _ in batch], draw), strict=True
            ):
                words[job] = first_word(text)
            bar.update(len(batch))
    records = [
        _record(story, targets[i], [words[i, r] for r in range(times)]) for i, story in enumerate(chosen)
    ]
    return Scores(tuple(records), "generate")


def first_word(text: str) -> str:
    """The first word of a text in lower case, without punctuation around it; "" where there is none."""
    words = text.split()
    return words[0].strip(string.punctuation + "“”‘’…—–").lower() if words else ""


class _Draw:
    """A logits processor after which the largest score is an exact draw from the tempered top-p distribution.

    argmax(log p + Gumbel noise) is distributed as p; the noise comes from one generator per row, so that a row's
    draws do not depend on its batch. It also stops at logits that are NaN, naming the story.
    """

    def __init__(
        self, model: Any, rows: Sequence[tuple[str, int]], temperature: float, top_p: float, seed: int
    ) -> None:
        self.model, self.rows, self.temperature, self.top_p = model, rows, temperature, top_p
        self.generators = [
            torch.Generator().manual_seed(_seed_of(f"{seed}/{repetition}/{name}"))
            for name, repetition in rows
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bad = scores.isnan().any(dim=-1)
        if bad.any():
            raise ValueError(
                f"Story {self.rows[int(bad.nonzero()[0])][0]!r}: the model's logits are NaN. "
                f"{why_not_finite(self.model)}"
            )
        if self.temperature == 0:
            return scores
        logprobs = torch.log_softmax(scores.float() / self.temperature, dim=-1)
        if self.top_p < 1:
            ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
            before = ordered.exp().cumsum(dim=-1) - ordered.exp()
            dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            logprobs = logprobs.masked_fill(dropped, -torch.inf)
        uniform = torch.stack(
            [torch.rand(scores.shape[-1], generator=g, dtype=torch.float64) for g in self.generators]
        )
        gumbel = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float64).tiny)))
        return logprobs + gumbel.to(logprobs)


def _complete(model: Any, tokenizer: Any, prompts: list[list[int]], draw: _Draw) -> list[str]:
    """Complete prompts of one length; returns the new text of each."""
    from transformers import LogitsProcessorList

    ids = torch.tensor(prompts, device=device_of(model))
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), logits_processor=LogitsProcessorList([draw])
    )
    return tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)


@contextlib.contextmanager
def _own_settings(model: Any, tokenizer: Any, max_new_tokens: int) -> Iterator[None]:
    """Greedy search without any penalty, filter or cache choice that the model's own settings may hold."""
    from transformers import GenerationConfig

    theirs = model.generation_config
    ends = theirs.eos_token_id if theirs is not None else None
    ends = ends if ends is not None else getattr(tokenizer, "eos_token_id", None)
    filler = ends[0] if isinstance(ends, list) else ends
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=filler
    )
    try:
        yield
    finally:
        model.generation_config = theirs


def _equal_lengths(
    jobs: Sequence[tuple[int, int]], prompts: Sequence[Sequence[int]], batch_size: int
) -> Iterator[list[tuple[int, int]]]:
    """Cut jobs sorted by prompt length into batches of one length."""
    batch: list[tuple[int, int]] = []
    for job in jobs:
        if batch and (len(batch) == batch_size or len(prompts[batch[0][0]]) != len(prompts[job[0]])):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def _encode_prompt(tokenizer: Any, story: Any) -> list[int]:
    ids = encode_text(tokenizer, story.prompt)
    if not ids:
        raise ValueError(
            f"Story {story.id!r}: its prompt has no token, so there is nothing to complete. Give a non-empty prompt."
        )
    return ids


def _target(story: Any) -> str:
    words = [first_word(choice) for choice in story.choices]
    target = words[story.answer]
    if not target or words.count(target) > 1:
        raise ValueError(
            f"Story {story.id!r}: the first word of its answer {story.choices[story.answer]!r} "
            f"{'is shared by another choice' if target else 'is empty'}, so it cannot tell right from wrong. "
            'Use method="choice".'
        )
    return target


def _record(story: Any, target: str, words: list[str]) -> Record:
    return make_record(story, tuple(float(word == target) for word in words), words[0])


def _seed_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _check_settings(
    batch_size: int, temperature: float, top_p: float, repetitions: int, max_new_tokens: int
) -> None:
    for name, value in (
        ("batch_size", batch_size),
        ("repetitions", repetitions),
        ("max_new_tokens", max_new_tokens),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or above.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must lie in (0, 1].")
