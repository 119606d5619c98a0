"""One measurement of a model as it is now: questions and perplexity, prepared once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tomfisher import evaluate
from tomfisher.evaluate.choice import ChoiceEvaluator
from tomfisher.evaluate.perplexity import PerplexityEvaluator
from tomfisher.evaluate.records import Scores
from tomfisher.evaluate.streamed import Measured, measure, questions, text
from tomfisher.models.load import LoadedModel
from tomfisher.runtime.boundaries import Boundaries
from tomfisher.runtime.positions import position_limit
from tomfisher.studies.config import PERPLEXITY_WINDOW, Config
from tomfisher.studies.inputs import Inputs

if TYPE_CHECKING:
    from tomfisher.evaluate import Perplexity
    from tomfisher.perturbation import State


class Measure:
    """Scores the study's questions and its perplexity text on one model, again and again.

    The questions are tokenised and their shared beginnings planned once.

    Args:
        config: the study.
        inputs: its texts.
        loaded: the model, which may be perturbed between the calls, and its tokenizer.
        progress: show a bar for every measurement.
        pack: whether questions may stand side by side in one sequence, see `ChoiceEvaluator`.

    Raises:
        ValueError: the perplexity's window does not fit the model.
    """

    def __init__(
        self, config: Config, inputs: Inputs, loaded: LoadedModel, progress: bool = False, pack: bool = True
    ) -> None:
        self.config = config
        self.inputs = inputs
        self.loaded = loaded
        self.progress = progress
        self.window = perplexity_window(config, loaded.model)
        self.rules: dict[str, Any] = {}
        self._options: dict[str, Any] = config.wording()
        if config.batch_size is not None:
            self._options["batch_size"] = config.batch_size
        self.choice: ChoiceEvaluator | None = None
        if config.method == "choice":
            self.choice = ChoiceEvaluator(
                loaded.tokenizer, inputs.questions, pack=pack, normalize=config.normalize, **self._options
            )

    def __call__(self) -> tuple[Scores, Perplexity]:
        """Scores and perplexity of the model in its present state; `rules` says how it was run the first time."""
        scores, perplexity = self.score(), self.perplexity()
        self._note(scores, perplexity)
        return scores, perplexity

    def _note(self, scores: Scores, perplexity: Perplexity) -> None:
        self.rules = self.rules or {"questions": scores.rules, "perplexity": perplexity.rules}

    def score(self) -> Scores:
        """Answers to all questions."""
        if self.choice is not None:
            share: bool | str = "auto" if self.config.share_prefix == "auto" else False
            return self.choice.score(self.loaded.model, share_prefix=share, progress=self.progress)
        config = self.config
        return evaluate.score(
            self.loaded.model,
            self.loaded.tokenizer,
            self.inputs.questions,
            method="generate",
            temperature=config.temperature,
            top_p=config.top_p,
            repetitions=config.repetitions,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            progress=self.progress,
            **self._options,
        )

    def perplexity(self) -> Perplexity:
        """Perplexity on the control text's held-out part."""
        return self.windows.score(self.loaded.model, progress=self.progress)

    @functools.cached_property
    def windows(self) -> PerplexityEvaluator:
        """The control text's held-out part, encoded."""
        config = self.config
        return PerplexityEvaluator(
            self.loaded.tokenizer,
            self.inputs.perplexity_text,
            window=self.window,
            stride=config.perplexity_stride,
            max_tokens=config.perplexity_tokens,
            bos=config.bos,
        )

    def in_states(self, states: Sequence[State], with_perplexity: bool = True) -> list[Measured]:
        """Scores, and perplexity, of a streamed model in every state, in one reading of its weights.

        Args:
            states: of its weights.
            with_perplexity: measure the perplexity too.

        Returns:
            One a state, whose `results` are the scores, and the perplexity if it was asked for.
        """
        assert self.choice is not None, "a streamed study answers by choice"
        programs = [questions(self.choice), *([text(self.windows)] if with_perplexity else [])]
        boundaries = Boundaries(self.config.boundary_folder)
        found = measure(self.loaded.opened, programs, states, boundaries, self.progress)
        if with_perplexity:
            self._note(*found[0].results)
        return found

    def describe(self) -> str:
        """What one call costs, in words."""
        return (
            f"{len(self.inputs.questions)} questions and {self.config.perplexity_tokens} tokens of text each"
        )


def told_of(found: Measured) -> dict[str, Any]:
    """What a measurement with a perplexity gave, as JSON."""
    scores, perplexity = found.results
    return {
        "scores": scores.to_dict(),
        "perplexity": perplexity.to_dict(),
        "nnz": found.nnz,
        "implementations": found.implementations,
    }


def measured_of(told: Mapping[str, Any]) -> Measured:
    """The measurement of which `told_of` told."""
    results = Scores.from_dict(told["scores"]), evaluate.Perplexity(**told["perplexity"])
    return Measured(results, told["nnz"], told["implementations"])


def perplexity_window(config: Config, model: Any) -> int:
    """The window to measure the perplexity in, checked against the model.

    Args:
        config: the study; without a `perplexity_window` it is min(512, the model's context).
        model: its model.

    Returns:
        Input tokens per window.

    Raises:
        ValueError: the window that was asked for is larger than the model's context, or smaller than the stride.
    """
    limit = position_limit(model)
    window = config.perplexity_window
    if window is None:
        window = PERPLEXITY_WINDOW if limit is None else min(PERPLEXITY_WINDOW, limit)
        if config.perplexity_stride is not None and config.perplexity_stride > window:
            raise ValueError(
                f"--perplexity_stride {config.perplexity_stride} is larger than the perplexity window, {window} tokens "
                f"with this model. Give --perplexity_stride {window} or less."
            )
    elif limit is not None and min(window, config.perplexity_tokens) > limit:
        raise ValueError(
            f"--perplexity_window {window} is larger than the model's context of {limit} tokens. "
            f"Give --perplexity_window {limit} or less, or leave it out."
        )
    return window
