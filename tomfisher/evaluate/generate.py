"""Free completion: does the first word that the model writes match the answer?"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tomfisher.evaluate.continuation import generate_is_right, write
from tomfisher.evaluate.records import Record, Scores
from tomfisher.evaluate.stories import check_stories, gap_of
from tomfisher.evaluate.together import agree
from tomfisher.progress import progress_bar
from tomfisher.runtime import ranks
from tomfisher.runtime.batches import plan_batches
from tomfisher.runtime.device import device_of
from tomfisher.runtime.gate import check_ids, check_model, why_not_finite
from tomfisher.runtime.modes import measuring
from tomfisher.runtime.positions import check_length
from tomfisher.runtime.rules import SINGLE, check_rules, weights_kept
from tomfisher.runtime.tensor_parallel import team_for
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.tasks.wording import Wording
from tomfisher.unknown import warn_of_dropped_characters, warn_of_unknown_tokens
from tomfisher.writing import begins_with, first_word, fold, join_spaceless

BATCH_SIZE = 32
FEWEST_TOKENS = 5  # what is written at least where nothing is said: the paper's
SPARE_TOKENS = 3  # after the longest answer


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
    max_new_tokens: int | None = None,
    seed: int = 0,
    gap: str = "auto",
    bos: str = "auto",
    chat_template: bool = False,
    system: str | None = None,
) -> Scores:
    """Let the model complete every prompt and compare the first word with the answer's.

    Words, case and punctuation are Unicode's; where an answer is written without spaces between words, the completion
    has to begin with it, and of several choices that it begins with, the longest is taken
    (`tomfisher.writing.begins_with`). The model is given what the prompt has in common before all choices
    (`Wording.branch`). Prompts of one batch have equal length, so nothing is padded. The draws of a story depend on
    `seed`, its id and the number of the repetition, not on the other stories or the batch size. At temperature 0 the
    likeliest token is taken every time, so there is nothing to repeat and each story is completed once.

    In an initialised process group of `torch.distributed` every rank makes this call with the same arguments, completes
    some of the batches that one process would complete, and gets all records.

    Args:
        model: a causal language model of transformers; its own generation settings are set aside, except its
            end-of-sequence tokens.
        tokenizer: its tokenizer; no padding token is needed.
        stories: objects with `id, group, condition, cell, kind, prompt, choices, answer`, and `gap` if they say what
            stands before their answers.
        batch_size: number of completions in one batch.
        progress: show a bar on a terminal.
        temperature: 0 for greedy, else the logits' divisor (the paper: 0.6).
        top_p: keep the smallest set of tokens with at least this probability, in (0, 1] (the paper: 0.9).
        repetitions: completions per story when sampling (the paper: 5).
        max_new_tokens: tokens to write. None: three more than the longest choice has, at least 5 (the paper's
            number). One too small for the longest choice and one token after it, which shows where it ends, is
            raised to that with a warning.
        seed: of the draws.
        gap: what stands between prompt and answer: see `tomfisher.tasks.wording.Wording`, also for the three below.
        bos: begin-of-sequence token in front: "auto", "yes" or "no".
        chat_template: every prompt becomes the user's turn in the tokenizer's chat template.
        system: the system's turn before it.

    Returns:
        `Scores`; a record's `correct` is the mean over its repetitions and `predicted` the first one's word.
        `max_new_tokens` is the number that was used.

    Warns:
        UserWarning: `max_new_tokens` was raised, or there are answers that nothing written could ever match.

    Raises:
        ValueError: a setting out of range, an unusable story, a choice that begins with the answer's first word,
            a prompt without tokens or too long for the model, logits that are NaN (the story is named), or a model
            that breaks a rule (`tomfisher.runtime.rules`).
        RankError: another rank has ended.
    """
    team = team_for(model)
    with team.call("score"):
        _check_settings(batch_size, temperature, top_p, repetitions, max_new_tokens)
        times = repetitions if temperature > 0 else 1
        wording = Wording(gap, bos, chat_template, system)
        settings = _Settings(batch_size, temperature, top_p, times, seed, wording)
        return _scored(team, model, tokenizer, tuple(stories), settings, max_new_tokens, progress)


@dataclass(frozen=True)
class _Settings:
    """How completions are drawn, and how questions are put."""

    batch_size: int
    temperature: float
    top_p: float
    times: int
    seed: int
    wording: Wording


def _scored(
    team: ranks.Team,
    model: Any,
    tokenizer: Any,
    chosen: Sequence[Any],
    settings: _Settings,
    max_new_tokens: int | None,
    progress: bool,
) -> Scores:
    """The records on every rank of a team, of which each has completed its share of the batches."""
    check_stories(chosen)
    wording, seed, times = settings.wording, settings.seed, settings.times
    questions = [_question(tokenizer, story, wording) for story in chosen]
    prompts = [question.ids for question in questions]
    max_new_tokens = _budget(questions, chosen, max_new_tokens)
    _warn_of_unreachable(tokenizer, questions, chosen, wording)
    warn_of_unknown_tokens(tokenizer, prompts, "the questions")
    warn_of_dropped_characters(tokenizer, (story.prompt for story in chosen), "the questions")
    check_model(model)
    check_ids(model, prompts, lambda i: f"Story {chosen[i].id!r}")
    longest = max(range(len(chosen)), key=lambda i: len(prompts[i]))
    # the last written token is never fed back
    check_length(
        model, len(prompts[longest]) + max_new_tokens - 1, f"Story {chosen[longest].id!r} with its completion"
    )
    written = [*prompts[longest], *prompts[longest][-1:] * (max_new_tokens - 1)]
    how = [settings.batch_size, settings.temperature, settings.top_p, times, seed, max_new_tokens]
    agree(team, model, "what is completed", [prompts, [[story.id, story.answer] for story in chosen]], how)
    rules = check_rules(model, [*prompts, written], settings.batch_size)
    batch_size = 1 if rules.batches == SINGLE else settings.batch_size
    jobs = [(i, r) for i in range(len(chosen)) for r in range(times)]
    batches = plan_batches([len(prompts[i]) for i, _ in jobs], max_samples=batch_size, padded=False)
    lengths = [len(rows) * (len(prompts[jobs[rows[0]][0]]) + max_new_tokens) for rows in batches]
    own = [batches[i] for i in team.share(lengths)]
    written_words: dict[int, str] = {}
    total, shown = sum(map(len, own)), progress and team.is_first
    bar = progress_bar(total=total, desc="generate", unit="completion", enabled=shown)
    with weights_kept(model), measuring(model), _own_settings(model, tokenizer, max_new_tokens), bar:
        right = max_new_tokens > 1 and generate_is_right(model, prompts[longest], rules)
        cached = all(team.exchange("the way to write", right))
        for rows in own:
            batch = [jobs[row] for row in rows]
            names = [(chosen[i].id, r) for i, r in batch]
            draw = _Draw(model, names, settings.temperature, settings.top_p, seed)
            texts = _complete(model, tokenizer, [prompts[i] for i, _ in batch], draw, cached)
            written_words |= {row: _word(text) for row, text in zip(rows, texts, strict=True)}
            bar.update(len(batch))
    words = dict(zip(jobs, team.merged("the completions", len(jobs), written_words), strict=True))
    records = [
        _record(story, questions[i], [words[i, r] for r in range(times)]) for i, story in enumerate(chosen)
    ]
    return Scores(
        tuple(records),
        "generate",
        wording=wording.to_dict(),
        max_new_tokens=max_new_tokens,
        rules={**rules.to_dict(), "cached": cached},
    )


@dataclass(frozen=True)
class _Question:
    """A prompt's ids, and the words that stand for each of its choices.

    Args:
        ids: of the prompt.
        lengths: tokens of every choice.
        targets: per choice, its first word as it is written and as the tokenizer gives it back.
    """

    ids: list[int]
    lengths: list[int]
    targets: list[tuple[str, ...]]

    def chosen(self, word: str) -> tuple[int | None, str]:
        """Which choice a written word stands for, if any, and the word: of a choice that it only begins with, that."""
        matching = [
            (len(target), i, target)
            for i, targets in enumerate(self.targets)
            for target in targets
            if begins_with(word, target)
        ]
        if not matching:
            return None, word
        length = max(matching)[0]
        _, i, target = min(entry for entry in matching if entry[0] == length)
        return i, target


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


def _complete(model: Any, tokenizer: Any, prompts: list[list[int]], draw: _Draw, cached: bool) -> list[str]:
    """Complete prompts of one length; returns the new text of each."""
    from transformers import LogitsProcessorList

    ids = torch.tensor(prompts, device=device_of(model))
    settings = model.generation_config
    if cached:
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=LogitsProcessorList([draw])
        )
    else:
        ends = settings.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
        out = write(model, ids, draw, settings.max_new_tokens, ends)
    return tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)


@contextlib.contextmanager
def _own_settings(model: Any, tokenizer: Any, max_new_tokens: int) -> Iterator[None]:
    """Greedy search without any penalty, filter or cache choice that the model's own settings may hold."""
    from transformers import GenerationConfig

    # a wrapper such as peft's hands its own settings on to the model inside
    holders = [(m, m.generation_config) for m in model.modules() if "generation_config" in vars(m)]
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
        vars(model).pop("generation_config", None)
        for module, settings in holders:
            module.generation_config = settings


def _question(tokenizer: Any, story: Any, wording: Wording) -> _Question:
    """Encode a story's prompt and find out what its choices look like when the model writes them."""
    prompt = wording.prompt(tokenizer, story.prompt)
    try:
        ids, answers = wording.branch(tokenizer, prompt, story.choices, gap_of(story))
    except ValueError as error:
        raise ValueError(f"Story {story.id!r}: {error}") from None
    back = [_given_back(tokenizer, answer) for answer in answers]
    # a choice whose first token begins within the prompt is written with that part of it
    apart = not tokenizer.decode(
        wording.encode(tokenizer, prompt)[len(ids) :], skip_special_tokens=True
    ).strip()
    written = [_word(choice) if apart else "" for choice in story.choices]
    targets = [
        tuple(dict.fromkeys(word for word in pair if word)) for pair in zip(written, back, strict=True)
    ]
    _check_targets(story, targets)
    return _Question(ids, list(map(len, answers)), targets)


def _word(text: str) -> str:
    return first_word(join_spaceless(text))


def _given_back(tokenizer: Any, ids: list[int]) -> str:
    """The first word of what the tokenizer makes of some ids; `""` where one of them is its unknown token."""
    if getattr(tokenizer, "unk_token_id", None) in ids:
        return ""
    return _word(tokenizer.decode(ids, skip_special_tokens=True))


def _check_targets(story: Any, targets: list[tuple[str, ...]]) -> None:
    right = {fold(word) for word in targets[story.answer]}
    others = {fold(word) for i, words in enumerate(targets) if i != story.answer for word in words}
    if not right or right & others:
        raise ValueError(
            f"Story {story.id!r}: the first word of its answer {story.choices[story.answer]!r} "
            f"{'is shared by another choice' if right else 'is empty'}, so it cannot tell right from wrong. "
            'Use method="choice".'
        )


def _budget(questions: Sequence[_Question], stories: Sequence[Any], max_new_tokens: int | None) -> int:
    """How many tokens to write: as asked, but never fewer than show every choice and where it ends."""
    longest = max(range(len(questions)), key=lambda i: max(questions[i].lengths))
    needed = max(questions[longest].lengths)
    if max_new_tokens is None:
        return max(FEWEST_TOKENS, needed + SPARE_TOKENS)
    if max_new_tokens > needed:
        return max_new_tokens
    warnings.warn(
        f"max_new_tokens is {max_new_tokens}, but a choice of story {stories[longest].id!r} has {needed} tokens: "
        f"{needed + 1} are written, so that it can be right.",
        stacklevel=4,
    )
    return needed + 1


def _warn_of_unreachable(
    tokenizer: Any, questions: Sequence[_Question], stories: Sequence[Any], wording: Wording
) -> None:
    """Say how many answers the model cannot give, because its tokenizer has no tokens for them in any case."""
    lost = [
        story.id
        for story, question in zip(stories, questions, strict=True)
        if not _reachable(tokenizer, question, story, wording)
    ]
    if lost:
        warnings.warn(
            f"The answers of {len(lost)} of {len(stories)} stories, such as {lost[0]!r}, cannot be written in this "
            f"model's tokens, so the accuracy cannot rise above {1 - len(lost) / len(stories):.3g}. Use a model that "
            'knows their words, or method="choice".',
            stacklevel=4,
        )


def _reachable(tokenizer: Any, question: _Question, story: Any, wording: Wording) -> bool:
    """Whether what the tokenizer gives back of the right answer, in some case, is taken for it."""
    answer = story.choices[story.answer]
    for text in (answer, answer.lower(), answer.capitalize()):
        _, ids = wording.split(tokenizer, wording.prompt(tokenizer, story.prompt), text, gap_of(story))
        if question.chosen(_given_back(tokenizer, ids))[0] == story.answer:
            return True
    return False


def _record(story: Any, question: _Question, words: list[str]) -> Record:
    picked = [question.chosen(word) for word in words]
    return Record.of_story(story, tuple(float(i == story.answer) for i, _ in picked), picked[0][1])


def _seed_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _check_settings(
    batch_size: int, temperature: float, top_p: float, repetitions: int, max_new_tokens: int | None
) -> None:
    for name, value in (
        ("batch_size", batch_size),
        ("repetitions", repetitions),
        ("max_new_tokens", max_new_tokens),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or above.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must lie in (0, 1].")
