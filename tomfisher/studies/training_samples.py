"""Training and validation samples: the task's Fisher stories, cut so that no pair of stories is torn."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tomfisher.tasks.selection import group_units, shuffle_balanced, take

if TYPE_CHECKING:
    from tomfisher.models.load import LoadedModel
    from tomfisher.sample import Sample
    from tomfisher.studies.config import Config
    from tomfisher.studies.inputs import Inputs
    from tomfisher.tasks.story import Story


class TrainingSamples(NamedTuple):
    """What is trained on.

    Attributes:
        train: samples of the steps.
        validation: samples that choose the learning rate.
        sha256: of the stories of both.
    """

    train: list[Sample]
    validation: list[Sample]
    sha256: str


def training_samples(
    config: Config,
    inputs: Inputs,
    loaded: LoadedModel,
    n_train: int,
    n_validation: int,
    file: str | None = None,
    balanced: bool = False,
) -> TrainingSamples:
    """The samples to train on and those that choose the learning rate, never of the evaluation's questions.

    They come from the Fisher split of the task, which for false-belief tasks has no control conditions: a model
    that learns to give every belief question the false-belief answer does well on it. The balanced split, or a
    file with controls in it, does not reward that.

    Args:
        config: the study; `n_task` is `n_train + n_validation`, and a task file that holds fewer gives all it has.
        inputs: its texts.
        loaded: the model and its tokenizer.
        n_train: stories to train on.
        n_validation: stories to validate on.
        file: a JSON or JSON Lines file of stories (`tomfisher.tasks.formats`) instead of the Fisher split.
        balanced: take every condition of the Fisher pool, not false beliefs alone.

    Returns:
        Both, in about this proportion; both directions of a story stay on one side.

    Raises:
        ValueError: there are not enough stories for both parts, the file holds a question of the evaluation, or
            both a file and `balanced` are given.
    """
    from tomfisher.runtime.positions import position_limit
    from tomfisher.studies.inputs import stories_sha256
    from tomfisher.tasks.encode import encode

    if file is not None and balanced:
        raise ValueError(f"{file} says itself which stories are trained on. Give it or balanced, not both.")
    length = config.max_length or position_limit(loaded.model)
    if file is not None:
        stories = _from_file(file, inputs, n_train + n_validation)
    else:
        stories = _balanced(config, n_train + n_validation) if balanced else inputs.task_stories
    parts = cut(stories, n_train / (n_train + n_validation))
    train, validation = (
        encode(loaded.tokenizer, part, supervise=config.supervise, max_length=length, **config.wording())
        for part in parts
    )
    return TrainingSamples(train, validation, stories_sha256(stories))


def _balanced(config: Config, n: int) -> list[Story]:
    """Stories of the Fisher pool, of every condition as often as of any other, as far as whole cells allow."""
    from tomfisher.tasks import load
    from tomfisher.tasks.registry import from_file

    held = load(config.task, seed=config.seed, split="balanced")
    if n > len(held) and not from_file(config.task):
        held = load(config.task, n=n, seed=config.seed, split="balanced")
    units = shuffle_balanced(group_units(held), config.seed)
    return take(units, min(n, len(held)), f"the balanced split of {config.task}")


def _from_file(file: str, inputs: Inputs, n: int) -> list[Story]:
    """Up to n stories of a file, balanced over its conditions; none of them is asked in the evaluation."""
    from tomfisher.tasks import load

    seed = inputs.config.seed
    held = load(file, seed=seed, split="all")
    asked = {story.prompt for story in inputs.questions}
    if shared := [story.id for story in held if story.prompt in asked]:
        raise ValueError(
            f"{file}: {len(shared)} of its {len(held)} stories, such as {shared[0]!r}, are questions of the evaluation "
            "too. Train on other stories."
        )
    return held if len(held) <= n else load(file, n=n, seed=seed, split="all")


def cut(stories: list[Story], share: float) -> tuple[list[Story], list[Story]]:
    """Cut stories after about this share of their units; neither part is empty.

    Raises:
        ValueError: there is only one unit.
    """
    units = group_units(stories)
    if len(units) < 2:
        raise ValueError(
            f"{len(stories)} training stories are one story in its directions, which cannot be cut into training and "
            "validation. Use a larger --n_train, or a task with more stories."
        )
    first = min(max(round(share * len(units)), 1), len(units) - 1)
    left, right = ([story for unit in part for story in unit] for part in (units[:first], units[first:]))
    return left, right
