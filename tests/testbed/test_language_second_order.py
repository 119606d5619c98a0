"""Second-order stories against a simulation that keeps each person's belief, and what one thinks the other believes."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from tomfisher.files import sha256_of_text
from tomfisher.testbed import language

CONDITIONS = language.FAMILIES[language.SECOND_ORDER]


def simulate(story: str) -> tuple[str, dict[str, str], dict[tuple[str, str], str]]:
    """Truth, belief of each person, and (a, b): what a thinks that b believes; written without the generator."""
    truth = ""
    people: set[str] = set()
    present: set[str] = set()
    belief: dict[str, str] = {}
    attributed: dict[tuple[str, str], str] = {}

    def learn(person: str, witnesses: set[str]) -> None:
        belief[person] = truth
        attributed.update({(witness, person): truth for witness in witnesses if witness != person})

    for sentence in story.removesuffix(" .").split(" . "):
        if match := re.fullmatch(r"(\w+) and (\w+) are in the room", sentence):
            people = present = set(match.groups())
        elif match := re.fullmatch(r"(\w+) (?:puts|moves) the \w+ (?:in|to) the (\w+)", sentence):
            assert match[1] in present, sentence
            truth = match[2]
            for person in present:
                learn(person, present)
        elif match := re.fullmatch(r"(\w+) leaves the room", sentence):
            present = present - {match[1]}
        elif match := re.fullmatch(r"(\w+) tells (\w+) about it", sentence):
            assert belief[match[1]] == truth
            learn(match[2], {match[1]})
        elif match := re.fullmatch(r"(\w+) looks in the \w+", sentence):
            learn(match[1], present)
        else:
            assert re.fullmatch(
                r"it is \w+|\w+ is \w+|\w+ stays in the room|\w+ looks at the \w+", sentence
            ), sentence
    assert len(people) == 2
    return truth, belief, attributed


def answer_of(story: str, stem: str) -> str:
    _, belief, attributed = simulate(story)
    if match := re.fullmatch(r"(\w+) thinks that (\w+) looks for the \w+ in the", stem):
        return attributed[match[1], match[2]]
    match = re.fullmatch(r"(\w+) looks for the \w+ in the", stem)
    assert match
    return belief[match[1]]


@pytest.fixture(scope="module")
def evaluation():
    return language.stories(960, second_order=True)


@pytest.fixture(scope="module")
def second(evaluation):
    return [story for story in evaluation if story.condition.startswith("second-order/")]


def test_every_answer_agrees_with_the_simulation(second):
    fisher = language.stories(90, split="fisher", second_order=True)
    asked = [*second, *(story for story in fisher if story.order == 2)]
    assert len(asked) == 320 + 30
    for story in asked:
        assert story.answer_text == answer_of(story.story, story.question), story.full_text


def test_training_answers_agree_with_the_simulation():
    rng = random.Random(3)
    seen: Counter[bool] = Counter()
    for _ in range(600):
        story, asked = language.training_story(rng, second_order=True)
        nested = any(re.match(r"\w+ thinks that \w+ looks", stem) for stem, _ in asked)
        seen[nested] += 1
        for stem, answer in asked if nested else ():
            assert answer == answer_of(story, stem), (story, stem)
    assert 150 < seen[True] < 250


def test_both_persons_differ_only_under_second_order_false_belief(second):
    for above, below in zip(second[::2], second[1::2], strict=True):
        assert above.cell == below.cell and above.story == below.story
        assert (above.order, below.order) == (2, 1)
        assert (above.kind, below.kind) == ("belief", "first-order")
        assert (above.answer != below.answer) == (above.condition == "second-order/false-belief")


def test_three_families_are_balanced_with_unique_ids(evaluation, second):
    assert len({story.id for story in evaluation}) == 960
    assert Counter(story.condition.split("/")[0] for story in evaluation) == dict.fromkeys(
        language.FAMILIES, 320
    )
    assert Counter(story.condition for story in second) == {f"second-order/{name}": 80 for name in CONDITIONS}
    for name in CONDITIONS:
        for order in (1, 2):
            told = [s for s in second if s.condition == f"second-order/{name}" and s.order == order]
            assert Counter(story.answer for story in told) == {0: 20, 1: 20}


def test_swapping_exchanges_the_two_answers(second):
    by_id = {story.id: story for story in second}
    for name, story in by_id.items():
        if "/original/" in name:
            twin = by_id[name.replace("/original/", "/swapped/")]
            first, other = story.choices
            exchanged = " ".join({first: other, other: first}.get(word, word) for word in story.story.split())
            assert (twin.choices, twin.story) == (story.choices, exchanged)
            assert twin.answer != story.answer


def test_the_conditions_end_alike_so_the_last_sentence_gives_nothing_away(second):
    ends = {tuple(story.story.split()[-11:][1:6]) for story in second}
    assert ends == {("leaves", "the", "room", ".", story) for story in {s.story.split()[-6] for s in second}}


def test_no_new_word_is_needed(evaluation):
    words = set(language.vocabulary())
    assert all(set(story.full_text.split()) <= words for story in evaluation)


def test_first_order_draws_are_what_they_were_without_second_order():
    assert not any(s.condition.startswith("second-order") for s in language.stories(64))
    texts = [story.full_text for story in language.stories(640)]
    assert sha256_of_text(*texts) == "27529683ec33e58624d86dfd39fb08b9b1fa87b482a94257b248d4de3f5c2b1e"


def test_fisher_split_is_the_false_belief_question_of_each_family():
    stories = language.stories(90, split="fisher", second_order=True)
    assert Counter((s.condition, s.order) for s in stories) == {
        ("contents/false-belief", 1): 30,
        ("transfer/false-belief", 1): 30,
        ("second-order/false-belief", 2): 30,
    }


def test_training_fisher_and_evaluation_share_no_combination(evaluation):
    def combination(story: str, stem: str, pair: set[str]) -> tuple[str, str, tuple[str, ...]]:
        person, thing = re.search(r"(\w+) looks for the (\w+)", stem).groups()
        return person, thing, tuple(sorted(pair))

    rng = random.Random(0)
    trained = set()
    for _ in range(4000):
        story, asked = language.training_story(rng, second_order=True)
        nested = [stem for stem, _ in asked if re.match(r"\w+ thinks that \w+ looks", stem)]
        pair = {answer for _, answer in asked}
        if nested and len(pair) == 2:
            trained.add(combination(story, nested[0], pair))
    splits = {"evaluation": evaluation, "fisher": language.stories(300, split="fisher", second_order=True)}
    seen = {
        split: {combination(s.story, s.question, set(s.choices)) for s in found if s.order == 2}
        for split, found in splits.items()
    }
    assert len(trained) > 200 and all(len(found) > 15 for found in seen.values())
    assert not trained & seen["fisher"]
    assert not trained & seen["evaluation"]
    assert not seen["fisher"] & seen["evaluation"]
