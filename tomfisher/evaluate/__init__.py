"""Measuring a model: task accuracy per condition, and perplexity on general text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tomfisher.evaluate.choice import ChoiceEvaluator
from tomfisher.evaluate.generate import score_generate
from tomfisher.evaluate.perplexity import Perplexity, perplexity
from tomfisher.evaluate.records import GroupScore, Record, Scores, compare
from tomfisher.evaluate.statistics import cluster_interval, sign_flip_test, wilson_interval

__all__ = [
    "ChoiceEvaluator",
    "GroupScore",
    "Perplexity",
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
        model: a causal language model of transformers, on any device, in any dtype.
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
    options: dict[str, Any] = {"gap": gap, "bos": bos, "chat_template": chat_template, "system": system}
    options |= {} if batch_size is None else {"batch_size": batch_size}
    if method == "choice":
        evaluator = ChoiceEvaluator(tokenizer, stories, pack=pack, normalize=normalize, **options)
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
