"""Training stories in English: they share nothing with those of an evaluation, and no simple guess answers them."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest

from tomfisher.tasks import corpus
from tomfisher.tasks.frames import family
from tomfisher.tasks.generator import FAMILIES
from tomfisher.tasks.names import EVALUATION_NAMES
from tomfisher.testbed.english import replay
from tomfisher.testbed.english.stories import PHRASES, ask, stories, tell
from tomfisher.text_files import read_yaml

MANY = 6000
# a guess that is right in half of the cases comes to more than this once in a hundred thousand samples of MANY / 4
CHANCE = 0.5 + 4.3 * (0.25 / (MANY / 4)) ** 0.5


@pytest.fixture(scope="module")
def many():
    return list(itertools.islice(stories(0), MANY))


def test_the_same_seed_tells_the_same_stories(many) -> None:
    assert list(itertools.islice(stories(0), 50)) == many[:50]
    assert list(itertools.islice(stories(1), 50)) != many[:50]


def test_no_gap_stays_open_and_hardly_a_prompt_comes_twice(many) -> None:
    assert not [
        story.full_text for story in many if re.search(r"[\[\]{}|]|True|False|None|  ", story.full_text)
    ]
    assert len({story.prompt for story in many}) > 0.99 * MANY


def test_a_question_has_its_own_answer(many) -> None:
    """Of the two questions about one telling the answers are not always the same, nor always different."""
    pairs = zip(many[::2], many[1::2], strict=True)
    plain = [
        (a, b) for a, b in pairs if set(a.choices) == set(b.choices) and a.choices[0] not in ("yes", "no")
    ]
    equal = sum(a.answer_text == b.answer_text for a, b in plain) / len(plain)
    assert 0.35 < equal < 0.65


def mentioned(story, last: bool):
    """The choice that the story names first, or last; None where it does not name both."""
    places = [story.story.rfind(c) if last else story.story.find(c) for c in story.choices]
    return None if min(places) < 0 or places[0] == places[1] else int((places[1] > places[0]) == last)


@pytest.mark.parametrize("last", [True, False])
def test_neither_the_first_word_nor_the_last_is_the_answer(last: bool, many) -> None:
    beliefs = [s for s in many if s.order == 1 and mentioned(s, last) is not None]
    right = sum(mentioned(s, last) == s.answer for s in beliefs) / len(beliefs)
    assert len(beliefs) > MANY / 4
    assert 1 - CHANCE < right < CHANCE


def test_the_truth_is_no_good_guess_of_a_belief() -> None:
    rng = random.Random(0)
    told = [tell(rng).answers for _ in range(MANY)]
    assert abs(sum(t["belief"] == t["reality"] for t in told) / MANY - 0.54) < 0.03
    assert abs(sum(t["belief"] for t in told) / MANY - 0.48) < 0.03


def test_yes_and_no_the_first_and_the_second_choice_are_as_often_right(many) -> None:
    answers = Counter(story.answer_text for story in many if story.choices[0] in ("yes", "no"))
    assert abs(answers["yes"] / sum(answers.values()) - 0.5) < 0.05
    assert abs(sum(story.answer for story in many) / MANY - 0.5) < 0.03


def test_every_question_of_every_kind_can_be_asked() -> None:
    rng = random.Random(1)
    seen = set()
    for _ in range(400):
        telling = tell(rng)
        for asked, value in telling.answers.items():
            story = ask(rng, telling, asked, "a/b")
            seen.add((telling.kind, asked))
            if story.choices[0] not in ("yes", "no"):
                assert telling.values[value] in story.answer_text
                assert not re.search(rf"\b{re.escape(telling.values[1 - value])}\b", story.answer_text)
    assert len(seen) == 4 + 3 + 3 + 2


def test_nothing_of_an_evaluation_is_in_the_phrases() -> None:
    content = read_yaml(PHRASES)
    lists = [content["women"], content["men"], content["rooms"]]
    for scene in content["places"]:
        lists += [scene["things"], [noun for _, noun in scene["at"]]]
    for scene in content["contents"]:
        lists += [scene["kinds"], scene["of"]]
    ours = {word for words in lists for word in words}
    theirs = set(EVALUATION_NAMES.all)
    for name in FAMILIES:
        for frame in family(name).frames["evaluation"]:
            theirs |= {word for pair in frame.pairs for word in pair} | set(frame.things)
    assert not ours & theirs


def test_the_general_text_is_english_and_not_the_one_perplexity_is_judged_by() -> None:
    documents = replay.documents()
    reference = corpus.load(corpus.PYTHON_REFERENCE).text
    assert sum(map(len, documents)) > 500_000
    assert not any(text in reference for text in documents)
