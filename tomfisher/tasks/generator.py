"""Stories from our own frames: every frame, filling, cast, condition and direction has one fixed id."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tomfisher.tasks.frames import Family, family
from tomfisher.tasks.names import CASTS_PER_FILLING, EVALUATION_NAMES, FISHER_NAMES, roles
from tomfisher.tasks.selection import POOL_OF_SPLIT, Unit, take
from tomfisher.tasks.story import COMPLETE_THE_STORY, SECOND_ORDER, Story

FIRST_ORDER = ("contents", "transfer")
FAMILIES = (*FIRST_ORDER, SECOND_ORDER)
DEFAULT_SIZES = {"evaluation": 640, "fisher": 200, "balanced": 640}
SPLITS = tuple(DEFAULT_SIZES)
# of each pool of frames: how ids call it, and its names
POOLS = {"evaluation": ("eval", EVALUATION_NAMES), "fisher": ("fisher", FISHER_NAMES)}


@dataclass(frozen=True)
class _Instance:
    """One frame of a pool with one filling and one cast."""

    family: Family
    pool: str
    frame: int
    filling: int
    cast: int

    @property
    def number(self) -> int:
        """Position in the pool; the same whatever the seed."""
        fillings = len(self.family.frames[self.pool][self.frame].pairs)
        return (self.frame * fillings + self.filling) * CASTS_PER_FILLING + self.cast

    def unit(self, condition: str, questions: Iterable[str]) -> Unit:
        """Both directions of one condition, each with the given questions, of `Family.orders`."""
        frame = self.family.frames[self.pool][self.frame]
        pair = frame.pairs[self.filling]
        short, names = POOLS[self.pool]
        who = roles(names, self.frame, self.filling, self.cast)
        stories = []
        for direction, words in (("as-written", pair), ("swapped", pair[::-1])):
            telling = self.family.tell(frame, condition, words, self.filling + self.cast, who)
            cell = f"{self.family.name}/{short}/{self.number:03d}/{condition}/{direction}"
            for question in questions:
                stem, answer = telling.questions[question]
                stories.append(
                    Story(
                        story=telling.text,
                        question=stem,
                        choices=pair,
                        answer=pair.index(answer),
                        condition=f"{self.family.name}/{condition}",
                        order=self.family.orders[question],
                        id=f"{cell}/{question}",
                        template=COMPLETE_THE_STORY,
                    )
                )
        return stories


def _instances(stories: Family, pool: str, seed: int) -> Iterator[_Instance]:
    """All instances of a pool in seeded order; every frame comes once before any comes again."""
    rng = random.Random(f"tomfisher.tasks:{stories.name}:{POOLS[pool][0]}:{seed}")
    order = list(range(len(stories.frames[pool])))
    rng.shuffle(order)
    decks = []
    for frame in order:
        fillings = range(len(stories.frames[pool][frame].pairs))
        deck = [_Instance(stories, pool, frame, f, c) for f in fillings for c in range(CASTS_PER_FILLING)]
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
    told = [family(name) for name in families]
    streams = [_instances(stories, POOL_OF_SPLIT[split], seed) for stories in told]
    for block in zip(*streams, strict=True):
        if split == "fisher":
            units.extend(instance.unit("false-belief", ("belief",)) for instance in block)
            continue
        for turn in range(max(len(stories.conditions) for stories in told)):
            for instance in block:
                conditions = list(instance.family.conditions)
                if turn < len(conditions):
                    units.append(instance.unit(conditions[turn], instance.family.orders))
    return take(
        units,
        default_size(families, split) if n is None else n,
        f"the {split} split of {' and '.join(families)}",
    )


def default_size(families: Sequence[str], split: str) -> int:
    """How many stories there are where no number is given; second-order stories come in cells of three."""
    whole = DEFAULT_SIZES[split]
    return 600 if split != "fisher" and tuple(families) == (SECOND_ORDER,) else whole
