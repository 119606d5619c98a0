"""Choosing a balanced part of many stories without tearing apart what belongs together."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence

from tomfisher.tasks.story import DIRECTIONS, Story

Unit = list[Story]
POOL_OF_SPLIT = {"evaluation": "evaluation", "fisher": "fisher", "balanced": "fisher"}


def unit_key(story: Story) -> str:
    """Name of the unit of a story: its cell, with the two directions of a swapped pair taken as one."""
    return "/".join(DIRECTIONS[0] if part in DIRECTIONS else part for part in story.cell.split("/"))


def group_units(stories: Sequence[Story]) -> list[Unit]:
    """Group stories by `unit_key`, in order of first appearance."""
    units: dict[str, Unit] = {}
    for story in stories:
        units.setdefault(unit_key(story), []).append(story)
    return list(units.values())


def shuffle_balanced(units: Sequence[Unit], seed: int) -> list[Unit]:
    """Order units at random such that every prefix holds the conditions as evenly as the data allow."""
    by_condition: dict[str, list[Unit]] = {}
    for unit in units:
        by_condition.setdefault(unit[0].condition, []).append(unit)
    rng = random.Random(f"tomfisher.tasks:selection:{seed}")
    for members in by_condition.values():
        rng.shuffle(members)
    longest = max((len(members) for members in by_condition.values()), default=0)
    return [
        members[turn] for turn in range(longest) for members in by_condition.values() if turn < len(members)
    ]


def take(units: Sequence[Unit], n: int | None, what: str) -> list[Story]:
    """Take whole units from the front until `n` stories are reached.

    Args:
        units: ordered units.
        n: number of stories; None takes all.
        what: name of the source, for messages.

    Returns:
        The stories of the first units: `n` of them, or a few more where the last unit would be torn; a
        `UserWarning` then says how many.

    Raises:
        ValueError: `n` is below 1 or above what there is.
    """
    available = sum(len(unit) for unit in units)
    if n is None:
        return [story for unit in units for story in unit]
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}. Leave it out to take all {available} of {what}.")
    if n > available:
        raise ValueError(f"{what} holds {available} stories, but n={n} were asked for. Use n <= {available}.")
    taken: list[Story] = []
    for unit in units:
        if len(taken) >= n:
            break
        taken.extend(unit)
    if len(taken) != n:
        warnings.warn(
            f"{what}: {n} questions would split some that belong together, so there are {len(taken)}.",
            UserWarning,
            stacklevel=3,
        )
    return taken
