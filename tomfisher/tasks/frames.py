"""Story frames: texts with gaps, in pieces that combine to one telling per condition. They lie in `stories/*.yaml`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomfisher.text_files import read_yaml

STORIES = Path(__file__).parent / "stories"
POOLS = ("evaluation", "fisher")


@dataclass(frozen=True)
class Telling:
    """One filled story, and what is asked about it: kind of question to stem and the word that completes it."""

    text: str
    questions: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Frame:
    """A story with gaps.

    Args:
        name: unique in its family.
        things: singular nouns for what is moved, or the container; fillings and casts take turns.
        pairs: the exchangeable words, in the direction as written; each pair is one filling.
        verb: verb phrase of the questions.
        pieces: its texts by name.
    """

    name: str
    things: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    verb: str
    pieces: Mapping[str, str]


@dataclass(frozen=True)
class Condition:
    """Which pieces are told, and which gap holds the word that answers each kind of question."""

    pieces: tuple[str, ...]
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """Stories of one kind.

    Args:
        name: the name of its file.
        words: the two gaps that a pair fills.
        conditions: by name.
        stems: kind of question to its text with gaps.
        orders: kind of question to belief order.
        frames: pool to its frames.
    """

    name: str
    words: tuple[str, str]
    conditions: Mapping[str, Condition]
    stems: Mapping[str, str]
    orders: Mapping[str, int]
    frames: Mapping[str, tuple[Frame, ...]]

    def tell(
        self, frame: Frame, condition: str, pair: tuple[str, str], turn: int, roles: Mapping[str, str]
    ) -> Telling:
        """Fill a frame.

        Args:
            frame: of this family.
            condition: one of `conditions`.
            pair: what fills the gaps `words`.
            turn: whose turn it is among the frame's things.
            roles: `tomfisher.tasks.names.roles`.
        """
        told = self.conditions[condition]
        gaps = dict(zip(self.words, pair, strict=True))
        words = {**roles, **gaps, "thing": frame.things[turn % len(frame.things)]}
        words["verb"] = frame.verb.format(**words)
        questions = {
            kind: (stem.format(**words), gaps[told.answers[kind]]) for kind, stem in self.stems.items()
        }
        return Telling(" ".join(frame.pieces[name] for name in told.pieces).format(**words), questions)


@functools.cache
def family(name: str) -> Family:
    """The stories of a file `stories/NAME.yaml`."""
    content = read_yaml(STORIES / f"{name}.yaml")
    first, second = content["words"]
    return Family(
        name,
        (first, second),
        {key: Condition(tuple(value.pop("pieces")), value) for key, value in content["conditions"].items()},
        {kind: question["stem"] for kind, question in content["questions"].items()},
        {kind: question["order"] for kind, question in content["questions"].items()},
        {pool: tuple(_frame(entry, content["verb"]) for entry in content[pool]) for pool in POOLS},
    )


def _frame(entry: dict[str, Any], verb: str) -> Frame:
    name, things, pairs = (entry.pop(key) for key in ("name", "things", "pairs"))
    verb = entry.pop("verb", verb)
    return Frame(name, tuple(things), tuple((first, second) for first, second in pairs), verb, entry)
