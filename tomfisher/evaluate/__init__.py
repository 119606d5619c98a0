"""Measuring a model: task accuracy per condition, and perplexity on general text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tomfisher.evaluate import streamed
from tomfisher.evaluate.choice import ChoiceEvaluator
from tomfisher.evaluate.generate import score_generate
from tomfisher.evaluate.perplexity import BATCH_SIZE as WINDOWS
from tomfisher.evaluate.perplexity import Perplexity, PerplexityEvaluator
from tomfisher.evaluate.records import GroupScore, Record, Scores, compare
from tomfisher.evaluate.statistics import cluster_interval, sign_flip_test, wilson_interval
from tomfisher.evaluate.streamed import refuse_resident_ways
from tomfisher.runtime.gate import check_model
from tomfisher.runtime.layerwise import StreamedModel

__all__ = [
    "ChoiceEvaluator",
    "GroupScore",
    "Perplexity",
    "PerplexityEvaluator",
    "Record",
    "Scores",
    "cluster_interval",
    "compare",
    "perplexity",
    "score",
    "score_generate",
    "sign_flip_test",
    "wilson_interval",
]


def score(
    model: Any,
    tokenizer: Any,
    stories: Iterable[Any],
    method: str = "choice",
    batch_size: int | None = None,
    progress: bool = True,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetitions: int = 1,
    max_new_tokens: int | None = None,
    seed: int = 0,
    share_prefix: bool | str = "auto",
    pack: bool = True,
    normalize: str = "total",
    gap: str = "auto",
    bos: str = "auto",
    chat_template: bool = False,
    system: str | None = None,
) -> Scores:
    """Score a model on stories, by choice or by free completion.

    `method="choice"` compares the log-probabilities (nats) of the full answers: see `ChoiceEvaluator`, which also
    encodes the stories once for many calls. `method="generate"` compares the first generated word: see
    `score_generate`. Evaluation mode and no gradients for the call; the training flags are put back.

    Args:
        model: a causal language model of transformers, on any device, in any dtype; or one of
            `tomfisher.models.opened.open_model`, whose layers are then read one after the other, with "choice" and
            whole rows.
        tokenizer: its tokenizer.
        stories: `tomfisher.tasks.Story` objects.
        method: "choice" or "generate".
        batch_size: rows per forward; None: 32.
        progress: show a bar on a terminal.
        temperature: generate only: 0 is greedy.
        top_p: generate only: nucleus probability in (0, 1].
        repetitions: generate only: completions per story when sampling.
        max_new_tokens: generate only: tokens to write; None: the longest choice's and three, at least 5.
        seed: generate only: of the draws.
        share_prefix: choice only: compute common beginnings once ("auto", True, False); see `ChoiceEvaluator.score`.
        pack: choice only: whether questions may stand side by side in one sequence; False to compare with a state
            of the model that cannot, see `ChoiceEvaluator`.
        normalize: choice only: what choices are compared by: "total" log-probability (the `acc` of
            lm-evaluation-harness), or that per "token", "character" (its `acc_norm`) or "byte" (its `acc_bytes`).
        gap: what stands between prompt and answer: "auto" (a story's own, else one space where the writing has spaces),
            "space", "none", "newline" or a text without letters and digits.
        bos: begin-of-sequence token in front: "auto" (as the tokenizer does for a text), "yes" or "no".
        chat_template: every prompt becomes the user's turn in the tokenizer's chat template.
        system: the system's turn before it.

    The last four are those of `tomfisher.encode`: see `tomfisher.tasks.wording.Wording`.

    Returns:
        `Scores`, one record per story.

    Raises:
        ValueError: unknown method, unusable stories or settings, log-probabilities that are not finite.
    """
    if isinstance(model, StreamedModel):
        refuse_resident_ways(method, share_prefix)
    options: dict[str, Any] = {"gap": gap, "bos": bos, "chat_template": chat_template, "system": system}
    options |= {} if batch_size is None else {"batch_size": batch_size}
    if method == "choice":
        evaluator = ChoiceEvaluator(tokenizer, stories, pack=pack, normalize=normalize, **options)
        if isinstance(model, StreamedModel):
            scores: Scores = streamed.measured(model, streamed.questions(evaluator), progress)
            return scores
        return evaluator.score(model, share_prefix=share_prefix, progress=progress)
    if method == "generate":
        return score_generate(
            model,
            tokenizer,
            stories,
            progress=progress,
            temperature=temperature,
            top_p=top_p,
            repetitions=repetitions,
            max_new_tokens=max_new_tokens,
            seed=seed,
            **options,
        )
    raise ValueError(f'method is {method!r}; it must be "choice" or "generate".')


def perplexity(
    model: Any,
    tokenizer: Any,
    text: Any,
    window: int = 512,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_size: int = WINDOWS,
    progress: bool = True,
    bos: str = "auto",
) -> Perplexity:
    """Score every token of a text except its first exactly once, in windows of at most `window` inputs.

    `PerplexityEvaluator(tokenizer, text, ...).score(model, progress)`, which says how, and what the other arguments
    are; it encodes the text once for many calls.

    Args:
        model: a causal language model of transformers, or one of `tomfisher.models.opened.open_model`.
        tokenizer: its tokenizer.
        text: a string, a sequence of strings, or an object with `documents`.
        window: largest number of input tokens, at least 1 and at most the model's positions.
        stride: tokens between two windows' starts, 1 ... window; None: `window`, no overlap.
        max_tokens: stop after this many scored tokens; words and bytes count only the part scored.
        batch_size: windows per forward; the logits of one forward hold batch_size · stride · vocabulary numbers.
        progress: show a bar on a terminal.
        bos: begin-of-sequence token in front of every window: "auto" (as the tokenizer does for a text), "yes" or
            "no".

    Returns:
        `Perplexity`.

    Raises:
        ValueError: a setting out of range, a text with nothing to score, a likelihood that is not finite, or a
            model that breaks a rule that a likelihood rests on (`tomfisher.runtime.rules`).
    """
    if not isinstance(model, StreamedModel):
        check_model(model)
    evaluator = PerplexityEvaluator(tokenizer, text, window, stride, max_tokens, batch_size, bos)
    if isinstance(model, StreamedModel):
        measured: Perplexity = streamed.measured(model, streamed.text(evaluator), progress)
        return measured
    return evaluator.score(model, progress)
