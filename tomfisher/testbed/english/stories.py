"""Stories about what someone believes, drawn from a grammar: what happens, how it is told, and what is asked.

Something has one value at first (a thing is in a place, a container holds something, a gate is open) and may get
another. The protagonist may or may not learn of it. Of every telling the belief of the protagonist, the truth and the
first value are known, and with them the answer to every question.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomfisher.tasks.story import Story
from tomfisher.text_files import read_yaml

PHRASES = Path(__file__).parent / "phrases.yaml"
KINDS = {"places": 4, "contents": 2, "states": 2, "label": 3}
# A belief is false, or true since nothing changed, or true since the change was seen. The first value is right about
# as often as the second, and the truth is hardly a better guess than what is not true.
COURSES = {"unaware": 0.46, "same": 0.06, "aware": 0.48}
ORDERS = {"belief": 1, "second": 2, "reality": 0, "memory": 0}
FORMS = ("stems", "questions", "said", "yes-no")
_VERB = re.compile(r"\[([^|\]]*)\|([^\]]*)\]")
_SENTENCE = re.compile(r"(^|[.!?] |\n)([a-z])")
_VOWEL = re.compile(r"\b([Aa]) (?=[aeiou])")


@dataclass(frozen=True)
class Telling:
    """A story that was told, and what is true in it.

    Args:
        kind: one of `KINDS`.
        course: "unaware", "same" or how the protagonist learnt of the change.
        text: the story.
        words: what fills the gaps of a question.
        values: the first value and the other one, as they answer a question.
        answers: kind of question to the value that answers it, 0 or 1.
    """

    kind: str
    course: str
    text: str
    words: Mapping[str, str]
    values: tuple[str, str]
    answers: Mapping[str, int]


def stories(seed: int) -> Iterator[Story]:
    """Training stories without end, a pure function of the seed: of every telling the belief and one more question.

    Args:
        seed: any integer.

    Yields:
        Stories with condition `<kind>/<course>` and an id that ends in the kind of the question.
    """
    rng = random.Random(f"tomfisher.testbed.english:{seed}")
    number = 0
    while True:
        telling = tell(rng)
        others = [asked for asked in telling.answers if asked != "belief"]
        for asked in ("belief", rng.choice(others)):
            yield ask(rng, telling, asked, f"english/{seed}/{number:06d}/{asked}")
        number += 1


def tell(rng: random.Random) -> Telling:
    """One story; its kind, its course, its words and its sentences are drawn at random.

    Args:
        rng: source of randomness; moved forward.
    """
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    course = rng.choices(list(COURSES), list(COURSES.values()))[0]
    words, values = _cast(rng, kind)
    if kind == "label":
        keys, answers = _label(course)
    elif kind == "places" and rng.random() < 0.4:
        course, keys, answers = _second(rng, course)
    else:
        course, keys, answers = _change(rng, kind, course)
    sentences = [rng.choice(_sentences(key)) for key in keys]
    while rng.random() < 0.4:  # what has nothing to do with it; never first
        sentences.insert(rng.randint(1, len(sentences)), rng.choice(_sentences("noise")))
    tense = rng.randint(1, 2)
    text = _written(" ".join(filter(None, sentences)), words)
    return Telling(kind, course, _VERB.sub(lambda verb: verb.group(tense), text), words, values, answers)


def ask(rng: random.Random, telling: Telling, asked: str, name: str) -> Story:
    """A question about a telling: a stem to complete, or a question that a word, a sentence or yes or no answers.

    Args:
        rng: source of randomness; moved forward.
        telling: what was told.
        asked: a key of its `answers`.
        name: the story's id.
    """
    key = f"{'contents' if telling.kind == 'label' else telling.kind}-{asked}"
    phrases, answer = _phrases(), telling.answers[asked]
    form = rng.choice([form for form in FORMS if key in phrases[form]])
    text, words, choices = rng.choice(phrases[form][key]), dict(telling.words), telling.values
    template = rng.choice(phrases["prompts" if form == "stems" else "asked"])
    if form == "yes-no":
        named = rng.randrange(2)
        words["asked"], choices, answer = telling.values[named], ("yes", "no"), int(named != answer)
    elif form == "said":
        first, second = (_written(text, {**words, "answer": value}) for value in choices)
        choices = first, second
        text = rng.choice(phrases["questions"][key])
    if rng.random() < 0.5:
        choices, answer = choices[::-1], 1 - answer
    if form == "questions" and asked != "memory" and telling.kind != "states" and rng.random() < 0.3:
        text = rng.choice(phrases["choices"]).format(question=text, first=choices[0], second=choices[1])
    return Story(
        story=telling.text,
        question=_written(text, words),
        choices=choices,
        answer=answer,
        condition=f"{telling.kind}/{telling.course}",
        order=ORDERS[asked],
        id=name,
        template=template,
    )


def _change(rng: random.Random, kind: str, course: str) -> tuple[str, list[str], dict[str, int]]:
    """Something has the first value, and may get the second while the protagonist is there or not."""
    before = [*_sometimes(rng, 0.5, f"{kind}-other"), f"{kind}-first"]
    answers = {"belief": int(course == "aware"), "reality": int(course != "same"), "memory": 0}
    if course == "same":
        return course, ["setting", *before, "away", f"{kind}-same", "unaware", "back"], answers
    changed = [f"{kind}-change", *_sometimes(rng, 0.4, f"{kind}-left")]
    if course == "unaware":
        return course, ["setting", *before, "away", *changed, "unaware", "back"], answers
    course = rng.choice(("watches", "sees-it", "told"))
    if course == "watches":
        return course, ["setting", *before, course, *changed], answers
    learns = f"told-{kind}" if course == "told" else course
    return course, ["setting", *before, "away", *changed, learns, "back"], answers


def _second(rng: random.Random, course: str) -> tuple[str, list[str], dict[str, int]]:
    """A thing is moved; the other one may be wrong about what the protagonist believes."""
    before = ["setting", *_sometimes(rng, 0.5, "places-other"), "places-first", "away"]
    if course == "same":
        return course, [*before, "places-same", "back"], {"belief": 0, "reality": 0, "memory": 0, "second": 0}
    course = {"unaware": "apart", "aware": rng.choice(("learns", "knows"))}[course]
    answers = {"belief": int(course != "apart"), "reality": 1, "memory": 0, "second": int(course == "knows")}
    return course, [*before, "places-change", *_sometimes(rng, 0.4, "places-left"), course, "back"], answers


def _label(course: str) -> tuple[list[str], dict[str, int]]:
    """A closed container with something written on it, which may be wrong."""
    if course == "same":
        return ["setting", "label-right", "reads"], {"belief": 0, "reality": 0}
    if course == "unaware":
        return ["setting", "label", "reads"], {"belief": 0, "reality": 1}
    return ["setting", "label", "opens"], {"belief": 1, "reality": 1}


def _cast(rng: random.Random, kind: str) -> tuple[dict[str, str], tuple[str, str]]:
    """Who and what a story is about, and its two values as answers."""
    phrases = _phrases()
    woman, man = rng.choice(phrases["women"]), rng.choice(phrases["men"])
    words = {"room": rng.choice(phrases["rooms"]), "errand": rng.choice(phrases["errands"])}
    if rng.random() < 0.5:
        words |= {"a": woman, "b": man, "he": "she", "He": "She", "him": "her", "his": "her"}
    else:
        words |= {"a": man, "b": woman, "he": "he", "He": "He", "him": "him", "his": "his"}
    if kind == "places":
        scene = rng.choice(phrases["places"])
        places = [(prep, f"the {noun}") for prep, noun in rng.sample(scene["at"], 2)]
        (prep0, noun0), (prep1, noun1) = places
        values = f"{prep0} {noun0}", f"{prep1} {noun1}"
        words |= {"t": rng.choice(scene["things"]), "in0": values[0], "in1": values[1]}
        words["from0"] = {"in": f"out of {noun0}", "on": f"from {noun0}"}.get(
            prep0, f"away from {prep0} {noun0}"
        )
        return words, values
    if kind == "states":
        state = rng.choice(phrases["states"])
        first, second = state["values"]
        return words | {"of": state["of"], "event": state["event"], "v0": first, "v1": second}, (
            first,
            second,
        )
    scene = rng.choice(phrases["contents"])
    first, second = rng.sample(scene["of"], 2)
    return words | {"k": rng.choice(scene["kinds"]), "v0": first, "v1": second}, (first, second)


def _sometimes(rng: random.Random, probability: float, key: str) -> list[str]:
    return [key] if rng.random() < probability else []


def _written(text: str, words: Mapping[str, str]) -> str:
    """Fill the gaps (an event has gaps of its own), and write what follows a full stop large."""
    filled = text.format(**{**words, "event": words.get("event", "").format(**words)})
    large = _SENTENCE.sub(lambda start: start.group(1) + start.group(2).upper(), filled)
    return _VOWEL.sub(r"\1n ", large)


@functools.cache
def _phrases() -> dict[str, Any]:
    content: dict[str, Any] = read_yaml(PHRASES)
    return content


def _sentences(key: str) -> list[str]:
    sentences: list[str] = _phrases()["sentences"][key]
    return sentences
