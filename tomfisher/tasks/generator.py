"""Stories from our own frames: every frame, filling, cast, condition and direction has one fixed id."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tomfisher.tasks import frames_contents, frames_second_order, frames_transfer
from tomfisher.tasks.frames import Frame
from tomfisher.tasks.names import CASTS_PER_FILLING, EVALUATION_NAMES, FISHER_NAMES, NamePool, roles
from tomfisher.tasks.selection import POOL_OF_SPLIT, Unit, take
from tomfisher.tasks.story import COMPLETE_THE_STORY, SECOND_ORDER, Story

CONDITIONS: Mapping[str, tuple[str, ...]] = {
    "contents": ("false-belief", "correct-label", "informed", "open"),
    "transfer": ("false-belief", "no-transfer", "informed", "present"),
}
FAMILIES: Mapping[str, tuple[str, ...]] = {
    **CONDITIONS,
    SECOND_ORDER: ("false-belief", "unseen", "no-transfer", "informed", "present"),
}
DEFAULT_SIZES = {"evaluation": 640, "fisher": 200, "balanced": 640}
SPLITS = tuple(DEFAULT_SIZES)


@dataclass(frozen=True)
class Pool:
    """Frames and names of one split of one family."""

    family: str
    short: str
    frames: Sequence[Frame]
    names: NamePool

    @property
    def orders(self) -> Mapping[str, int]:
        """The questions of a cell, and the belief order of each."""
        if self.family == SECOND_ORDER:
            return {"belief": 2, "first-order": 1, "reality": 0}
        return {"belief": 1, "reality": 0}


POOLS: Mapping[tuple[str, str], Pool] = {
    ("contents", "evaluation"): Pool("contents", "eval", frames_contents.EVALUATION_FRAMES, EVALUATION_NAMES),
    ("contents", "fisher"): Pool("contents", "fisher", frames_contents.FISHER_FRAMES, FISHER_NAMES),
    ("transfer", "evaluation"): Pool("transfer", "eval", frames_transfer.EVALUATION_FRAMES, EVALUATION_NAMES),
    ("transfer", "fisher"): Pool("transfer", "fisher", frames_transfer.FISHER_FRAMES, FISHER_NAMES),
    (SECOND_ORDER, "evaluation"): Pool(
        SECOND_ORDER, "eval", frames_second_order.EVALUATION_FRAMES, EVALUATION_NAMES
    ),
    (SECOND_ORDER, "fisher"): Pool(SECOND_ORDER, "fisher", frames_second_order.FISHER_FRAMES, FISHER_NAMES),
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
        """Both directions of one condition, each with the given questions, of `Pool.orders`."""
        frame = self.pool.frames[self.frame]
        pair = frame.pairs[self.filling]
        who = roles(self.pool.names, self.frame, self.filling, self.cast)
        stories = []
        for direction, (first, second) in (("as-written", pair), ("swapped", pair[::-1])):
            telling = frame.tell(condition, first, second, self.filling + self.cast, who)
            cell = f"{self.pool.family}/{self.pool.short}/{self.number:03d}/{condition}/{direction}"
            for question in questions:
                stem, answer = telling.question(question)
                stories.append(
                    Story(
                        story=telling.text,
                        question=stem,
                        choices=pair,
                        answer=pair.index(answer),
                        condition=f"{self.pool.family}/{condition}",
                        order=self.pool.orders[question],
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

    The evaluation split has every condition in both directions with a belief and a reality question (16
    stories per frame instance), in second-order stories a question about the friend's belief too (30 stories).
    The Fisher split has the belief question of the false-belief condition only, in both directions, from other
    frames, names, things and places. The balanced split has every condition and question of that second pool.

    Args:
        families: from `FAMILIES`.
        n: number of stories; families and conditions are balanced, cells and direction pairs stay whole
            (a count that would tear them is rounded up, with a warning). None for 640 (evaluation and balanced; 600
            of second-order stories alone) or 200 (fisher).
        seed: which stories are taken, and in which order.
        split: "evaluation", "fisher" or "balanced".

    Returns:
        Stories with unique ids; the stories of a smaller `n` come first in those of a larger one.

    Raises:
        ValueError: unknown split, or `n` outside 1 to the number of stories.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    units: list[Unit] = []
    streams = [_instances(POOLS[family, POOL_OF_SPLIT[split]], seed) for family in families]
    for block in zip(*streams, strict=True):
        if split == "fisher":
            units.extend(instance.unit("false-belief", ("belief",)) for instance in block)
            continue
        for turn in range(max(len(FAMILIES[family]) for family in families)):
            for instance in block:
                conditions = FAMILIES[instance.pool.family]
                if turn < len(conditions):
                    units.append(instance.unit(conditions[turn], tuple(instance.pool.orders)))
    return take(
        units,
        default_size(families, split) if n is None else n,
        f"the {split} split of {' and '.join(families)}",
    )


def default_size(families: Sequence[str], split: str) -> int:
    """How many stories there are where no number is given; second-order stories come in cells of three."""
    whole = DEFAULT_SIZES[split]
    return 600 if split != "fisher" and tuple(families) == (SECOND_ORDER,) else whole
