"""Stories from our own frames: every frame, filling, cast, condition and direction has one fixed id."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tomfisher.tasks import frames_contents, frames_transfer
from tomfisher.tasks.frames import Frame
from tomfisher.tasks.names import CASTS_PER_FILLING, EVALUATION_NAMES, FISHER_NAMES, NamePool, roles
from tomfisher.tasks.selection import Unit, take
from tomfisher.tasks.story import COMPLETE_THE_STORY, Story

CONDITIONS: Mapping[str, tuple[str, ...]] = {
    "contents": ("false-belief", "correct-label", "informed", "open"),
    "transfer": ("false-belief", "no-transfer", "informed", "present"),
}
DEFAULT_SIZES = {"evaluation": 640, "fisher": 200}
SPLITS = tuple(DEFAULT_SIZES)


@dataclass(frozen=True)
class Pool:
    """Frames and names of one split of one family."""

    family: str
    short: str
    frames: Sequence[Frame]
    names: NamePool


POOLS: Mapping[tuple[str, str], Pool] = {
    ("contents", "evaluation"): Pool("contents", "eval", frames_contents.EVALUATION_FRAMES, EVALUATION_NAMES),
    ("contents", "fisher"): Pool("contents", "fisher", frames_contents.FISHER_FRAMES, FISHER_NAMES),
    ("transfer", "evaluation"): Pool("transfer", "eval", frames_transfer.EVALUATION_FRAMES, EVALUATION_NAMES),
    ("transfer", "fisher"): Pool("transfer", "fisher", frames_transfer.FISHER_FRAMES, FISHER_NAMES),
}


@dataclass(frozen=True)
class _Instance:
    """One frame with one filling and one cast."""

    pool: Pool
    frame: int
    filling: int
    cast: int

    @property
    def number(self) -> int:
        """Position in the pool; the same whatever the seed."""
        fillings = len(self.pool.frames[self.frame].pairs)
        return (self.frame * fillings + self.filling) * CASTS_PER_FILLING + self.cast

    def unit(self, condition: str, questions: Sequence[str]) -> Unit:
        """Both directions of one condition, each with the given questions ("belief", "reality")."""
        frame = self.pool.frames[self.frame]
        pair = frame.pairs[self.filling]
        who = roles(self.pool.names, self.frame, self.filling, self.cast)
        stories = []
        for direction, (first, second) in (("as-written", pair), ("swapped", pair[::-1])):
            telling = frame.tell(condition, first, second, self.filling + self.cast, who)
            cell = f"{self.pool.family}/{self.pool.short}/{self.number:03d}/{condition}/{direction}"
            for question in questions:
                belief = question == "belief"
                stories.append(
                    Story(
                        story=telling.text,
                        question=telling.belief if belief else telling.reality,
                        choices=pair,
                        answer=pair.index(telling.believed if belief else telling.true),
                        condition=f"{self.pool.family}/{condition}",
                        order=1 if belief else 0,
                        id=f"{cell}/{question}",
                        template=COMPLETE_THE_STORY,
                    )
                )
        return stories


def _instances(pool: Pool, seed: int) -> Iterator[_Instance]:
    """All instances of a pool in seeded order; every frame comes once before any comes again."""
    rng = random.Random(f"tomfisher.tasks:{pool.family}:{pool.short}:{seed}")
    order = list(range(len(pool.frames)))
    rng.shuffle(order)
    decks = []
    for frame in order:
        fillings = range(len(pool.frames[frame].pairs))
        deck = [_Instance(pool, frame, f, c) for f in fillings for c in range(CASTS_PER_FILLING)]
        rng.shuffle(deck)
        decks.append(deck)
    for turn in range(max(map(len, decks))):
        yield from (deck[turn] for deck in decks if turn < len(deck))


def generate(
    families: Sequence[str], n: int | None = None, seed: int = 0, split: str = "evaluation"
) -> list[Story]:
    """Generate stories of one or more families.

    The evaluation split has every condition in both directions with a belief and a reality question: 16
    stories per frame instance. The Fisher split has the belief question of the false-belief condition only,
    in both directions, from other frames, names, things and places.

    Args:
        families: from `CONDITIONS`.
        n: number of stories; families and conditions are balanced, cells and direction pairs stay whole
            (a count that would tear them is rounded up, with a warning). None for 640 (evaluation) or 200
            (fisher).
        seed: which stories are taken, and in which order.
        split: "evaluation" or "fisher".

    Returns:
        Stories with unique ids; the stories of a smaller `n` come first in those of a larger one.

    Raises:
        ValueError: unknown split, or `n` outside 1 to the number of stories.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    units: list[Unit] = []
    streams = [_instances(POOLS[family, split], seed) for family in families]
    for block in zip(*streams, strict=True):
        if split == "fisher":
            units.extend(instance.unit("false-belief", ("belief",)) for instance in block)
            continue
        for turn in range(4):
            for instance in block:
                condition = CONDITIONS[instance.pool.family][turn]
                units.append(instance.unit(condition, ("belief", "reality")))
    return take(
        units, DEFAULT_SIZES[split] if n is None else n, f"the {split} split of {' and '.join(families)}"
    )
