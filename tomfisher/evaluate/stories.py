"""What an evaluation asks of the stories that it is given."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from tomfisher.evaluate.records import ALL
from tomfisher.tasks.gap import AUTO


def gap_of(story: Any) -> str:
    """What a story says about the gap before its answers."""
    return str(getattr(story, "gap", AUTO))


def check_stories(stories: Sequence[Any]) -> None:
    """Refuse what cannot be scored, naming the story."""
    if not stories:
        raise ValueError("There are no stories to score. Pass at least one.")
    seen: set[str] = set()
    for story in stories:
        rule = ""
        if len(story.choices) < 2:
            rule = f"has {len(story.choices)} choice(s); at least 2 are needed"
        elif len(set(story.choices)) < len(story.choices):
            rule = f"has equal choices {story.choices!r}; they must differ"
        elif not 0 <= story.answer < len(story.choices):
            rule = f"has answer {story.answer}; it must be an index into its {len(story.choices)} choices"
        elif story.group == ALL:
            rule = f"is in a group called {ALL!r}, which is the name of the union; rename its condition"
        elif story.id in seen:
            rule = "has an id that an earlier story has; ids must be unique"
        if rule:
            raise ValueError(f"Story {story.id!r} {rule}.")
        seen.add(story.id)


def warn_of_equal(
    spans: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], owners: Sequence[int], stories: Sequence[Any]
) -> None:
    """Say how many stories have choices of the same tokens, such as two unknown words."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    equal: dict[int, None] = {}
    for owner, (_, answer) in zip(owners, spans, strict=True):
        if (owner, answer) in seen:
            equal[owner] = None
        seen.add((owner, answer))
    if equal:
        warnings.warn(
            f"{len(equal)} of {len(stories)} stories, such as {stories[next(iter(equal))].id!r}, have choices that are "
            "the same in this model's tokens, so they cannot be told apart. Use a model that knows their words.",
            stacklevel=3,
        )
