"""The false-belief language: a closed vocabulary, stories about who saw what, and the questions on them.

Every story is drawn from a scene: two people, a thing, and two places (or two contents) of it. The scene's
combination of names decides by a hash which split it belongs to, so training, Fisher and evaluation stories
never share one.

Second-order stories ask what one person thinks that the other believes. Both see the same things until the second
one has left the room; then the protagonist looks into the second place, alone, and knows the truth in any case.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tomfisher.files import sha256_of_text
from tomfisher.tasks.corpus import Corpus
from tomfisher.tasks.selection import POOL_OF_SPLIT
from tomfisher.tasks.story import SECOND_ORDER, Story
from tomfisher.testbed import general

PEOPLE = general.PEOPLE
OBJECTS = general.OBJECTS
PLACES = general.PLACES
CONTAINERS = general.CONTAINERS
STUFFS = general.STUFFS

CONDITIONS = {
    "contents": ("false-belief", "correct-label", "informed", "open"),
    "transfer": ("false-belief", "no-transfer", "informed", "present"),
}
FAMILIES = {**CONDITIONS, SECOND_ORDER: ("false-belief", "no-transfer", "informed", "present")}
SPLITS = ("training", "fisher", "evaluation")
DEFAULT_SIZES = {"evaluation": 640, "fisher": 200, "balanced": 640}


@dataclass(frozen=True)
class Scene:
    """What a story is about, before its condition is chosen.

    Args:
        family: "contents", "transfer" or "second-order".
        person: the protagonist, whose belief is asked for.
        other: the second person, who sees everything; in second-order stories, all but the last sentence.
        thing: the container (contents) or the object (transfer).
        first: what the label says, or the place where the object is first.
        second: what is really inside, or the place where it goes.
        opening: a sentence that changes nothing, possibly empty.
        flipped: exchanges who acts first, or which of two facts is told first.
    """

    family: str
    person: str
    other: str
    thing: str
    first: str
    second: str
    opening: str = ""
    flipped: bool = False

    @property
    def combination(self) -> tuple[str, ...]:
        """Protagonist, thing and the unordered pair of answers: what the split is decided by."""
        return (self.family, self.person, self.thing, *sorted((self.first, self.second)))

    @property
    def split(self) -> str:
        """The split of this combination: 80 % training, 10 % fisher, 10 % evaluation."""
        digit = int(hashlib.sha256("|".join(self.combination).encode()).hexdigest(), 16) % 10
        return {0: "evaluation", 1: "fisher"}.get(digit, "training")

    def swapped(self) -> Scene:
        """The same scene in the other direction."""
        return replace(self, first=self.second, second=self.first)

    def truth(self, condition: str) -> str:
        """Where the object is, or what is inside, at the end of the story."""
        return self.first if condition in ("no-transfer", "correct-label") else self.second

    def belief(self, condition: str) -> str:
        """What the protagonist believes it to be: the truth, except under first-order false belief."""
        if condition == "false-belief" and self.family != SECOND_ORDER:
            return self.first
        return self.truth(condition)

    def attributed_belief(self, condition: str) -> str:
        """What the second person thinks that the protagonist believes."""
        return self.first if condition == "false-belief" else self.truth(condition)

    def tell(self, condition: str) -> str:
        """The story in words.

        Args:
            condition: one of `FAMILIES[family]`.

        Returns:
            Lower-case sentences, every word and every full stop separated by one space.

        Raises:
            ValueError: the family has no such condition.
        """
        if condition not in FAMILIES[self.family]:
            raise ValueError(
                f"{self.family} stories have no condition {condition!r}; choose from {FAMILIES[self.family]}."
            )
        body = self._contents(condition) if self.family == "contents" else self._transfer(condition)
        return " ".join(part for part in (self.opening, *body) if part)

    def _transfer(self, condition: str) -> list[str]:
        one, two = (self.other, self.person) if self.flipped else (self.person, self.other)
        stays = condition == "present"
        moves = condition != "no-transfer"
        return [
            f"{one} and {two} are in the room .",
            f"{one} puts the {self.thing} in the {self.first} .",
            f"{self.person} stays in the room ." if stays else f"{self.person} leaves the room .",
            f"{self.other} moves the {self.thing} to the {self.second} ."
            if moves
            else f"{self.other} looks at the {self.second} .",
            f"{self.other} tells {self.person} about it ." if condition == "informed" else "",
            *(self._peek() if self.family == SECOND_ORDER else ()),
        ]

    def _peek(self) -> list[str]:
        return [f"{self.other} leaves the room .", f"{self.person} looks in the {self.second} ."]

    def _contents(self, condition: str) -> list[str]:
        inside = self.truth(condition)
        facts = [
            f"{self.other} fills the {self.thing} with {inside} .",
            f"the label says {self.first} .",
        ]
        learns = {
            "open": f"{self.person} looks in the {self.thing} .",
            "informed": f"{self.other} tells {self.person} about it .",
        }
        return [
            *(reversed(facts) if self.flipped else facts),
            f"there is some {self.second} on the floor ." if condition == "correct-label" else "",
            learns.get(condition, f"{self.person} reads the label ."),
        ]

    @property
    def belief_question(self) -> str:
        """The cloze stem that asks for the protagonist's belief."""
        if self.family == "contents":
            return f"{self.person} thinks that the {self.thing} is full of"
        return f"{self.person} looks for the {self.thing} in the"

    @property
    def attributed_question(self) -> str:
        """The cloze stem that asks what the second person thinks of the protagonist's belief."""
        return f"{self.other} thinks that {self.belief_question}"

    @property
    def reality_question(self) -> str:
        """The cloze stem that asks how things stand."""
        return f"the {self.thing} is full of" if self.family == "contents" else f"the {self.thing} is in the"

    def questions(self, condition: str) -> list[tuple[str, str]]:
        """Stems with their answers: the protagonist's belief, then reality.

        In second-order stories: what the second person thinks of the protagonist's belief, then that belief.
        """
        belief = self.belief_question, self.belief(condition)
        if self.family == SECOND_ORDER:
            return [(self.attributed_question, self.attributed_belief(condition)), belief]
        return [belief, (self.reality_question, self.truth(condition))]


def draw_scene(rng: random.Random, family: str, split: str) -> Scene:
    """Draw a scene whose combination belongs to `split`.

    Args:
        rng: source of randomness; moved forward.
        family: "contents", "transfer" or "second-order".
        split: "training", "fisher" or "evaluation".

    Returns:
        The scene.

    Raises:
        ValueError: no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"The false-belief language has no split {split!r}; choose from {SPLITS}.")
    while True:
        person, other = rng.sample(PEOPLE, 2)
        thing = rng.choice(CONTAINERS if family == "contents" else OBJECTS)
        first, second = rng.sample(STUFFS if family == "contents" else PLACES, 2)
        opening = rng.choice(
            ("", f"it is {rng.choice(general.DAYS)} .", f"{other} is {rng.choice(general.MOODS)} .")
        )
        scene = Scene(family, person, other, thing, first, second, opening, rng.random() < 0.5)
        if scene.split == split:
            return scene


def _cell(scene: Scene, condition: str, direction: str, prefix: str) -> Iterator[Story]:
    """Both questions of one cell."""
    story = scene.tell(condition)
    choices = tuple(sorted((scene.first, scene.second)))
    asked = (
        ((2, "belief"), (1, "first-order"))
        if scene.family == SECOND_ORDER
        else ((1, "belief"), (0, "reality"))
    )
    for (order, kind), (question, answer) in zip(asked, scene.questions(condition), strict=True):
        yield Story(
            story=story,
            question=question,
            choices=choices,
            answer=choices.index(answer),
            condition=f"{scene.family}/{condition}",
            order=order,
            id=f"{prefix}/{condition}/{direction}/{kind}",
        )


def _endless(seed: int, split: str, families: tuple[str, ...]) -> Iterator[Story]:
    """Stories without end, in rows of one cell per family; eight rows (fisher: two) are balanced."""
    orders = ":second-order" if SECOND_ORDER in families else ""
    rng = random.Random(f"tomfisher.testbed:{split}:{seed}{orders}")
    number = 0
    while True:
        scenes = [draw_scene(rng, family, POOL_OF_SPLIT[split]) for family in families]
        conditions = [("false-belief",) if split == "fisher" else FAMILIES[scene.family] for scene in scenes]
        for direction in ("original", "swapped"):
            for row in zip(*conditions, strict=True):
                for scene, condition in zip(scenes, row, strict=True):
                    prefix = f"{scene.family}/{split}/{number:03d}"
                    turned = scene if direction == "original" else scene.swapped()
                    yield from _cell(turned, condition, direction, prefix)
        number += 1


def stories(
    n: int | None = None, seed: int = 0, split: str = "evaluation", second_order: bool = False
) -> list[Story]:
    """Stories of the false-belief language, balanced over families, conditions and directions.

    "evaluation" gives whole cells (a belief and a reality question on one story; a second-order and a first-order
    one on a second-order story) of every condition, "fisher" the first of these of the false-belief condition
    only, "balanced" whole cells of every condition from the combinations of "fisher". Those of evaluation are
    disjoint from them, and no story that the shipped models were trained on uses either.

    Args:
        n: number of questions; None for 640 (evaluation, balanced) or 200 (fisher), half as many again with second
            order. A number that would tear a cell is rounded up, with a warning.
        seed: another seed draws other scenes.
        split: "evaluation", "fisher" or "balanced".
        second_order: second-order stories as a third family.

    Returns:
        The stories, a pure function of the arguments; a smaller `n` gives a prefix.

    Raises:
        ValueError: unknown split, or `n` below 1.
    """
    if split not in DEFAULT_SIZES:
        raise ValueError(f"The testbed has no story split {split!r}; choose from {tuple(DEFAULT_SIZES)}.")
    whole_cells = split != "fisher"
    families = tuple(FAMILIES if second_order else CONDITIONS)
    default = DEFAULT_SIZES[split] * len(families) // len(CONDITIONS)
    n = default if n is None else n
    if n < 1:
        raise ValueError(f"n={n} asks for no story; give 1 or more, or None for {default}.")
    if whole_cells and n % 2:
        n += 1
        warnings.warn(f"A testbed cell has two questions: n={n - 1} was rounded up to {n}.", stacklevel=2)
    wanted = (story for story in _endless(seed, split, families) if whole_cells or story.kind == "belief")
    return list(itertools.islice(wanted, n))


def training_story(
    rng: random.Random, slips: float = 0.0, second_order: bool = False
) -> tuple[str, list[tuple[str, str]]]:
    """Draw a training story with its two answered questions in random order.

    Families and conditions are equally frequent, so belief and reality agree three times out of four and false
    belief is the exception that has to be told from the story.

    Args:
        rng: source of randomness; moved forward.
        slips: probability, for every answer, that the other of the two choices stands in its place.
        second_order: draw from second-order stories too.

    Returns:
        The story, and (stem, answer) pairs.
    """
    family = rng.choice(tuple(FAMILIES if second_order else CONDITIONS))
    condition = rng.choice(FAMILIES[family])
    scene = draw_scene(rng, family, "training")
    other = {scene.first: scene.second, scene.second: scene.first}
    asked = [
        (stem, other[answer] if rng.random() < slips else answer)
        for stem, answer in scene.questions(condition)
    ]
    rng.shuffle(asked)
    return scene.tell(condition), asked


def corpus(documents: int = 640, seed: int = 0) -> Corpus:
    """General text of the same language, without beliefs: the control text, none of it seen in training.

    Args:
        documents: number of documents, about 90 words each.
        seed: another seed draws other documents.

    Returns:
        A `tomfisher.tasks.corpus.Corpus` named "testbed".
    """
    rng = random.Random(f"tomfisher.testbed:corpus:{seed}")
    texts = [general.document(rng, held_out=True) for _ in range(documents)]
    return Corpus(name="testbed", documents=texts, sha256=sha256_of_text(*texts))


RESERVED = ("closed", "open")  # in no text; without them the shipped weights' token ids would shift


def vocabulary() -> list[str]:
    """Every word of the language, sorted; stories and general text use no other."""
    frame = (
        "and are in the room . puts stays leaves moves to looks at tells about it fills with label says "
        "there is some on floor reads for thinks that full of"
    )
    return sorted({*frame.split(), *general.vocabulary(), *RESERVED})
