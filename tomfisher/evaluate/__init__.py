"""Measuring a model: task accuracy per condition, and perplexity on general text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tomfisher.evaluate.choice import ChoiceEvaluator
from tomfisher.evaluate.generate import score_generate
from tomfisher.evaluate.perplexity import Perplexity, perplexity
from tomfisher.evaluate.records import GroupScore, Record, Scores, compare
from tomfisher.evaluate.scenes import scene_interval, sign_flip_test
from tomfisher.evaluate.statistics import mcnemar, wilson_interval

__all__ = [
    "ChoiceEvaluator",
    "GroupScore",
    "Perplexity",
    "Record",
    "Scores",
    "compare",
    "mcnemar",
    "perplexity",
    "scene_interval",
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
    max_new_tokens: int = 5,
    seed: int = 0,
    share_prefix: bool | str = "auto",
    pack: bool = True,
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
        max_new_tokens: generate only: tokens to write.
        seed: generate only: of the draws.
        share_prefix: choice only: compute common beginnings once ("auto", True, False); see `ChoiceEvaluator.score`.
        pack: choice only: whether questions may stand side by side in one sequence; False to compare with a state
            of the model that cannot, see `ChoiceEvaluator`.

    Returns:
        `Scores`, one record per story.

    Raises:
        ValueError: unknown method, unusable stories or settings, log-probabilities that are not finite.
    """
    sizes: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
    if method == "choice":
        evaluator = ChoiceEvaluator(tokenizer, stories, pack=pack, **sizes)
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
            **sizes,
        )
    raise ValueError(f'method is {method!r}; it must be "choice" or "generate".')
