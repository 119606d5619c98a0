"""What a published format is, and the stories that one of its readers collects."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tomfisher.files import sha256_of_text
from tomfisher.tasks.records import Record
from tomfisher.tasks.story import Story

QUESTION = "{story}\nQuestion: {question}\nAnswer:"
_ORDINALS = {2: "second-order", 3: "third-order", 4: "fourth-order"}


class Format(NamedTuple):
    """A data set as its authors publish it.

    Attributes:
        title: one line: what it asks.
        source: where it is published.
        licence: of the data.
        needs: the file or folder to give.
        records: reads that file or folder.
        stories: makes stories of records; the second argument names the part, such as "test".
        hub: whether rows of a `datasets` id have the fields that `stories` reads.
    """

    title: str
    source: str
    licence: str
    needs: str
    records: Callable[[str | os.PathLike[str]], list[Record]]
    stories: Callable[[Sequence[Record], str], list[Story]]
    hub: bool = False


def level_of(order: int) -> str:
    """The part of a condition that says the order of a belief: "" for 1, "second-order/" for 2, up to 4."""
    return f"{_ORDINALS[order]}/" if order > 1 else ""


def belief(name: str, order: int, answer: str, real: str) -> str:
    """The condition of a question about a belief, which is false where it differs from what is the case.

    Args:
        name: of the format.
        order: 1 for a belief, 2 for a belief about a belief, ...
        answer: the right answer.
        real: what the answer would be if everybody knew everything.

    Returns:
        `<name>/false-belief` or `<name>/true-belief`; above order 1 with `second-order/` and so on between the two.
    """
    return f"{name}/{level_of(order)}{'true' if answer == real else 'false'}-belief"


@dataclass
class Asked:
    """Collects the questions of one file.

    Args:
        name: of the format.
        part: of the data set, such as "test".
    """

    name: str
    part: str
    stories: list[Story] = field(default_factory=list)

    def add(
        self,
        record: Record,
        story: str,
        question: str,
        choices: Sequence[str],
        answer: str,
        condition: str,
        order: int,
        scene: str | None = None,
        template: str = QUESTION,
    ) -> None:
        """Add a question.

        Args:
            record: where it stands.
            story: what is told.
            question: what is asked.
            choices: possible answers; equal ones are taken as one.
            answer: the right one of them.
            condition: as `Story.condition`.
            order: as `Story.order`.
            scene: what questions have in common that are not independent of one another; None is the story's text.
            template: as `Story.template`.

        Raises:
            ValueError: the answer is not among the choices, or they make no story: with the record's place.
        """
        choices = tuple(dict.fromkeys(choice.strip() for choice in choices))
        if answer.strip() not in choices:
            raise record.refuse(
                f"the right answer {answer!r} is none of the possible ones: {', '.join(map(repr, choices))}",
                "Mend the answer or the story.",
            )
        scene = sha256_of_text(scene or story)[:12]
        told = condition.removeprefix(f"{self.name}/").replace("/", "-")
        identity = f"{self.name}/{self.part}/{scene}/{told}/as-written/{len(self.stories) + 1:05d}"
        try:
            made = Story(
                *(
                    story,
                    question,
                    choices,
                    choices.index(answer.strip()),
                    condition,
                    order,
                    identity,
                    template,
                )
            )
        except ValueError as error:
            raise record.refuse(str(error).rstrip("."), "Mend the record.") from None
        self.stories.append(made)
