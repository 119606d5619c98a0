"""General text of the false-belief language: counting, lists, places, colours, days; nobody believes anything."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words("anna ben carl dora emil fay gus hana ivan jane karl lena")
OBJECTS = _words("ball book coin cup doll key lamp ring spoon toy")
CONTAINERS = _words("bag bottle box can jar sack")
PLACES = (*CONTAINERS, *_words("basket chest drawer shed"))
STUFFS = _words("candy flour honey milk rice sand soap sugar tea wool")
COLOURS = _words("black blue brown green red white")
DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
MOODS = _words("glad sad tired calm")
NUMBERS = _words("one two three four five six seven eight nine ten")


def _listing(words: list[str]) -> str:
    return " , ".join(f"a {word}" for word in words[:-1]) + f" and a {words[-1]}"


def _counting(rng: random.Random) -> str:
    person, top = rng.choice(PEOPLE), rng.randint(3, len(NUMBERS))
    return f"{person} counts to {NUMBERS[top - 1]} : {' '.join(NUMBERS[:top])} ."


def _possessions(rng: random.Random) -> str:
    person, things = rng.choice(PEOPLE), rng.sample(OBJECTS, rng.randint(2, 4))
    return f"{person} has {_listing(things)} . so {person} has {NUMBERS[len(things) - 1]} things : {_listing(things)} ."


def _colours(rng: random.Random) -> str:
    things, colours = rng.sample((*OBJECTS, *CONTAINERS), 3), rng.sample(COLOURS, 3)
    facts = [f"the {thing} is {colour} ." for thing, colour in zip(things, colours, strict=True)]
    asked = rng.sample(range(3), 2)
    return " ".join([*facts, *(f"what colour is the {things[i]} ? {colours[i]} ." for i in asked)])


def _places(rng: random.Random) -> str:
    things, places = rng.sample(OBJECTS, 2), rng.sample(PLACES, 3)
    told = [f"the {thing} is in the {place} ." for thing, place in zip(things, places, strict=False)]
    if rng.random() < 0.5:
        moved = rng.randrange(2)
        told.append(f"{rng.choice(PEOPLE)} moves the {things[moved]} to the {places[2]} .")
        places[moved] = places[2]
    asked = rng.randrange(2)
    return " ".join([*told, f"where is the {things[asked]} ? in the {places[asked]} ."])


def _filling(rng: random.Random) -> str:
    person, container, stuff = rng.choice(PEOPLE), rng.choice(CONTAINERS), rng.choice(STUFFS)
    return f"{person} fills the {container} with {stuff} . what is in the {container} ? {stuff} ."


def _company(rng: random.Random) -> str:
    one, two = rng.sample(PEOPLE, 2)
    gone = rng.choice((one, two))
    left = two if gone == one else one
    return f"{one} and {two} are in the room . {gone} leaves the room . who is in the room ? {left} ."


def _days(rng: random.Random) -> str:
    start = rng.randrange(len(DAYS))
    today, tomorrow, after = (DAYS[(start + i) % len(DAYS)] for i in range(3))
    return f"it is {today} . after {today} comes {tomorrow} and after {tomorrow} comes {after} ."


def _pattern(rng: random.Random) -> str:
    words = rng.sample(rng.choice((COLOURS, OBJECTS, STUFFS)), rng.randint(2, 3))
    return f"{rng.choice(PEOPLE)} says {' '.join(words * 3)} ."


def _likings(rng: random.Random) -> str:
    person, stuff, mood = rng.choice(PEOPLE), rng.choice(STUFFS), rng.choice(MOODS)
    return f"{person} thinks about {stuff} . {person} is {mood} . {person} looks for {stuff} and is {mood} ."


PASSAGES: tuple[Callable[[random.Random], str], ...] = (
    _counting,
    _possessions,
    _colours,
    _places,
    _filling,
    _company,
    _days,
    _pattern,
    _likings,
)


def document(rng: random.Random, held_out: bool) -> str:
    """Draw one document of five passages.

    Args:
        rng: source of randomness; moved forward.
        held_out: documents fall into two disjoint sets by the hash of their text; True draws from the one
            that training never sees.

    Returns:
        The text, about 90 words separated by single spaces.
    """
    while True:
        text = " ".join(rng.choice(PASSAGES)(rng) for _ in range(5))
        if (hashlib.sha256(text.encode()).digest()[0] < 64) == held_out:
            return text


def vocabulary() -> set[str]:
    """Every word that general text can use."""
    frame = (
        "counts to : . has , a and so things the is what colour ? in moves where fills with are room leaves who it "
        "after comes says thinks about looks for"
    )
    pools = (PEOPLE, OBJECTS, PLACES, STUFFS, COLOURS, DAYS, MOODS, NUMBERS)
    return {*frame.split(), *(word for pool in pools for word in pool)}
