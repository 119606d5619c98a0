"""The texts of a study: Fisher samples, questions and perplexity text, with their hashes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

from tomfisher.files import sha256_of_text
from tomfisher.models.load import LoadedModel
from tomfisher.results.row import HEADLINE
from tomfisher.runtime.positions import position_limit
from tomfisher.sample import Sample
from tomfisher.studies.config import Config
from tomfisher.tasks.gap import AUTO
from tomfisher.tasks.registry import from_file
from tomfisher.tasks.story import Story, scene_of

_HELD = {
    "all": "questions",
    "evaluation": "questions in its evaluation half",
    "fisher": "stories in its Fisher half",
}


class Inputs:
    """Loads what the config names, once and when first asked for.

    Args:
        config: the study.
        whole_file: ask all questions of a task file, not only those of its evaluation half.
    """

    def __init__(self, config: Config, whole_file: bool = False) -> None:
        self.config = config
        self._evaluation_split = "all" if whole_file and from_file(config.task) else "evaluation"

    @functools.cached_property
    def task_stories(self) -> list[Story]:
        """Stories of the Fisher pool."""
        return self._stories("fisher", self.config.n_task, "n_task")

    @functools.cached_property
    def questions(self) -> list[Story]:
        """Stories of the evaluation pool."""
        return self._stories(self._evaluation_split, self.config.limit, "limit")

    def _stories(self, split: str, n: int | None, setting: str) -> list[Story]:
        """Up to n stories of a split; a file that holds fewer gives all it has, with a note."""
        from tomfisher import tasks

        task, seed = self.config.task, self.config.seed
        if n is not None and from_file(task):
            held = len(tasks.load(task, seed=seed, split=split))
            if held < n:
                if n != getattr(Config, setting):  # a default that nobody asked for
                    warnings.warn(
                        f"{setting} is {n}, but {task} has {held} {_HELD[split]}: all are used.",
                        stacklevel=2,
                    )
                n = None
        return tasks.load(task, n=n, seed=seed, split=split)

    @functools.cached_property
    def _control(self) -> tuple[Any, Any, str]:
        from tomfisher.tasks import corpus

        whole = corpus.load(self.config.control)
        # the cut never depends on the study's seed: stores of any seed keep clear of the perplexity text
        return *corpus.split(whole), whole.sha256

    @functools.cached_property
    def perplexity_text(self) -> str:
        """The part of the control text that no Fisher sample is taken from."""
        return "\n\n".join(self._control[1].documents)

    def samples(self, which: str, loaded: LoadedModel) -> list[Sample]:
        """The Fisher samples "task" or "control" for a model.

        Task samples longer than `max_length`, or than the model's context, are cut, with a note. Control
        samples are windows of `control_length` tokens, every token supervised.
        """
        from tomfisher.tasks import corpus
        from tomfisher.tasks.encode import encode

        config = self.config
        if which == "task":
            length = config.max_length or position_limit(loaded.model)
            return encode(
                loaded.tokenizer,
                self.task_stories,
                supervise=config.supervise,
                max_length=length,
                **config.wording(),
            )
        return corpus.windows(
            loaded.tokenizer,
            self._control[0],
            length=config.control_length,
            n=config.n_control,
            seed=config.seed,
            bos=config.bos,
        )

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the texts: equal hashes mean equal samples and questions."""
        hashes = self.evaluation_hashes()
        if self.config.task_store is None:
            hashes["task"] = stories_sha256(self.task_stories)
        return hashes

    def evaluation_hashes(self) -> dict[str, str]:
        """SHA-256 of what the evaluation asks and of the text of the perplexity."""
        return {"questions": stories_sha256(self.questions), "control": self._control[2]}

    def chance(self) -> dict[str, float | None]:
        """Accuracy of guessing on the belief questions about false beliefs, and on all questions.

        None for generated answers, where guessing has no defined accuracy.
        """
        if self.config.method != "choice":
            return {HEADLINE: None, "all": None}
        return {
            name: _guess(stories) for name, stories in ((HEADLINE, self._beliefs()), ("all", self.questions))
        }

    def headline_clusters(self) -> int:
        """Number of clusters of the questions that the verdict is about: false beliefs, or all where there are none."""
        return len({scene_of(story.cell) for story in self._beliefs() or self.questions})

    def _beliefs(self) -> list[Story]:
        return [story for story in self.questions if story.group.split("/")[-1] == HEADLINE]


def _guess(stories: list[Story]) -> float | None:
    return sum(1 / len(story.choices) for story in stories) / len(stories) if stories else None


def stories_sha256(stories: Sequence[Story]) -> str:
    """SHA-256 of what is told, asked and answered, in order; of a gap only where a story says one."""
    parts = (
        (
            story.id,
            story.prompt,
            *((story.gap,) if story.gap != AUTO else ()),
            *story.choices,
            str(story.answer),
        )
        for story in stories
    )
    return sha256_of_text(*(text for part in parts for text in part))
