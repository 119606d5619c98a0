"""What a story frame is: text pieces that combine to one telling per condition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Telling:
    """One filled story with its two questions, or three where beliefs about beliefs are told.

    Args:
        text: the story.
        belief: question stem about what the protagonist believes; in second-order stories, about what the
            protagonist believes that the friend believes.
        reality: question stem about what is the case.
        believed: the word that completes `belief`.
        true: the word that completes `reality`.
        first_order: question stem about what the friend believes; second-order stories only.
        first_believed: the word that completes `first_order`.
    """

    text: str
    belief: str
    reality: str
    believed: str
    true: str
    first_order: str = ""
    first_believed: str = ""

    def question(self, kind: str) -> tuple[str, str]:
        """Stem and answer of the question "belief", "first-order" or "reality"."""
        return {
            "belief": (self.belief, self.believed),
            "first-order": (self.first_order, self.first_believed),
            "reality": (self.reality, self.true),
        }[kind]


class Frame(Protocol):
    """What the generator asks of a frame of any family."""

    @property
    def name(self) -> str:
        """Name of the frame, unique in its pool."""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The exchangeable words: each pair is one filling."""

    @property
    def props(self) -> frozenset[str]:
        """Other nouns that carry the story: the container, or the things that are moved."""

    def tell(self, condition: str, first: str, second: str, turn: int, roles: Mapping[str, str]) -> Telling:
        """Fill the frame for one condition with the words `first` and `second` in their two parts."""


@dataclass(frozen=True)
class ContentsFrame:
    """Unexpected contents: a closed container whose label may differ from what is inside.

    Placeholders: those of `tomfisher.tasks.names.roles`, and {inside}, {label}; in `agreed`, {inside} is also
    the label and {label} the word that is only mentioned. Only the Fisher pool leaves the control pieces empty.

    Args:
        name: unique name.
        container: noun for the container.
        pairs: (contents, label) for the direction as written.
        opening: who and where.
        filled: the label is wrong; mentions {inside} and {label} once each.
        unseen: the protagonist meets the label and has no other knowledge.
        agreed: the label is right; also mentions {label}, which is somewhere else.
        told: the protagonist meets the label, learns the truth from the friend and believes it.
        seen: the protagonist meets the label and sees the truth in the open container.
        holds: verb phrase between the container and its contents in the questions.
    """

    name: str
    container: str
    pairs: tuple[tuple[str, str], ...]
    opening: str
    filled: str
    unseen: str
    agreed: str = ""
    told: str = ""
    seen: str = ""
    holds: str = "is full of"

    @property
    def props(self) -> frozenset[str]:
        """The container."""
        return frozenset({self.container})

    def tell(self, condition: str, first: str, second: str, turn: int, roles: Mapping[str, str]) -> Telling:
        """Fill the frame: `first` is inside; `second` is on the label unless the label is right."""
        middle, end = {
            "false-belief": (self.filled, self.unseen),
            "correct-label": (self.agreed, self.unseen),
            "informed": (self.filled, self.told),
            "open": (self.filled, self.seen),
        }[condition]
        words = {**roles, "inside": first, "label": second}
        return Telling(
            text=" ".join((self.opening, middle, end)).format(**words),
            belief=f"{roles['name']} believes that the {self.container} {self.holds}",
            reality=f"The {self.container} {self.holds}",
            believed=second if condition == "false-belief" else first,
            true=first,
        )


@dataclass(frozen=True)
class TransferFrame:
    """Unexpected transfer: a thing may be moved while the protagonist is away.

    Placeholders: those of `tomfisher.tasks.names.roles`, and {thing}, {start}, {end}. Only the Fisher pool
    leaves the control pieces empty.

    Args:
        name: unique name.
        things: singular nouns for what is moved; fillings and casts take turns.
        pairs: (start, end) places for the direction as written, both after "in the".
        opening: the protagonist leaves the thing in the start place.
        moved: the protagonist is away, the friend moves the thing.
        back: the protagonist returns, having heard nothing.
        stays: the protagonist is away, the thing stays.
        told: the protagonist is told of the move, believes it and returns.
        watched: the protagonist is present and sees the move.
        asks: verb phrase of the belief question, before "in the".
    """

    name: str
    things: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    opening: str
    moved: str
    back: str
    stays: str = ""
    told: str = ""
    watched: str = ""
    asks: str = "thinks that the {thing} is"

    @property
    def props(self) -> frozenset[str]:
        """The things that are moved."""
        return frozenset(self.things)

    def tell(self, condition: str, first: str, second: str, turn: int, roles: Mapping[str, str]) -> Telling:
        """Fill the frame: the thing starts in `first`; `second` is where it goes unless it stays."""
        pieces = {
            "false-belief": (self.opening, self.moved, self.back),
            "no-transfer": (self.opening, self.stays, self.back),
            "informed": (self.opening, self.moved, self.told),
            "present": (self.opening, self.watched),
        }[condition]
        thing = self.things[turn % len(self.things)]
        words = {**roles, "thing": thing, "start": first, "end": second}
        return Telling(
            text=" ".join(pieces).format(**words),
            belief=f"{roles['name']} {self.asks.format(thing=thing)} in the",
            reality=f"The {thing} is in the",
            believed=first if condition in ("false-belief", "no-transfer") else second,
            true=first if condition == "no-transfer" else second,
        )


@dataclass(frozen=True)
class SecondOrderFrame:
    """A belief about a belief: the protagonist moves a thing, and the friend may learn of it unnoticed.

    Placeholders: those of `tomfisher.tasks.names.roles`, and {thing}, {start}, {end}. Only the Fisher pool
    leaves the control pieces empty.

    Args:
        name: unique name.
        things: singular nouns for what is moved; fillings and casts take turns.
        pairs: (start, end) places for the direction as written, both after "in the".
        opening: both are there when the thing is put in the start place.
        away: the friend goes away.
        moved: the protagonist moves the thing.
        seen: the friend learns of the move, and the protagonist does not know that.
        noticed: the friend learns of the move, and the protagonist knows that.
        missed: the friend learns nothing, and the protagonist knows that.
        stays: the protagonist does not move the thing.
        watched: the friend is present and sees the move.
        asks: verb phrase of the friend's belief, before "in the".
    """

    name: str
    things: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    opening: str
    away: str
    moved: str
    seen: str
    noticed: str = ""
    missed: str = ""
    stays: str = ""
    watched: str = ""
    asks: str = "thinks that the {thing} is"

    @property
    def props(self) -> frozenset[str]:
        """The things that are moved."""
        return frozenset(self.things)

    def tell(self, condition: str, first: str, second: str, turn: int, roles: Mapping[str, str]) -> Telling:
        """Fill the frame: the thing starts in `first`; `second` is where it goes unless it stays."""
        pieces = {
            "false-belief": (self.opening, self.away, self.moved, self.seen),
            "unseen": (self.opening, self.away, self.moved, self.missed),
            "no-transfer": (self.opening, self.away, self.stays, self.missed),
            "informed": (self.opening, self.away, self.moved, self.noticed),
            "present": (self.opening, self.watched),
        }[condition]
        thing = self.things[turn % len(self.things)]
        believes = f"{roles['friend']} {self.asks.format(thing=thing)} in the"
        return Telling(
            text=" ".join(pieces).format(**roles, thing=thing, start=first, end=second),
            belief=f"{roles['name']} thinks that {believes}",
            reality=f"The {thing} is in the",
            believed=second if condition in ("informed", "present") else first,
            true=first if condition == "no-transfer" else second,
            first_order=believes,
            first_believed=first if condition in ("no-transfer", "unseen") else second,
        )
