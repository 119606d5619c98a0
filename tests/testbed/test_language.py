"""The language against a simulation that reads the stories sentence by sentence and tracks who knows what."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from tomfisher.files import sha256_of_text
from tomfisher.testbed import general, language

CONDITIONS = {f"{family}/{condition}" for family, names in language.CONDITIONS.items() for condition in names}


def simulate(story: str) -> tuple[str, dict[str, str]]:
    """What is true at the end of a story, and what each person believes; written without the generator."""
    truth = label = ""
    present: set[str] = set()
    belief: dict[str, str] = {}
    for sentence in story.removesuffix(" .").split(" . "):
        if match := re.fullmatch(r"(\w+) and (\w+) are in the room", sentence):
            present = set(match.groups())
        elif match := re.fullmatch(r"(\w+) (?:puts|moves) the \w+ (?:in|to) the (\w+)", sentence):
            truth = match[2]
            belief |= dict.fromkeys(present, truth)
        elif match := re.fullmatch(r"(\w+) fills the \w+ with (\w+)", sentence):
            truth = belief[match[1]] = match[2]
        elif match := re.fullmatch(r"the label says (\w+)", sentence):
            label = match[1]
        elif match := re.fullmatch(r"(\w+) reads the label", sentence):
            belief[match[1]] = label
        elif match := re.fullmatch(r"(\w+) looks in the \w+", sentence):
            belief[match[1]] = truth
        elif match := re.fullmatch(r"(\w+) leaves the room", sentence):
            present.remove(match[1])
        elif match := re.fullmatch(r"(\w+) tells (\w+) about it", sentence):
            belief[match[2]] = belief[match[1]]
        else:
            known = r"it is \w+|\w+ is \w+|\w+ stays in the room|\w+ looks at the \w+|there is some \w+ on the floor"
            assert re.fullmatch(known, sentence), sentence
    return truth, belief


@pytest.fixture(scope="module")
def evaluation():
    return language.stories(640)


def test_every_answer_agrees_with_the_simulation(evaluation):
    for story in [*evaluation, *language.stories(100, split="fisher")]:
        truth, belief = simulate(story.story)
        asked = truth if story.order == 0 else belief[story.question.split()[0]]
        assert story.answer_text == asked, story.full_text


def test_training_answers_agree_with_the_simulation():
    rng = random.Random(3)
    for _ in range(300):
        story, asked = language.training_story(rng)
        truth, belief = simulate(story)
        for stem, answer in asked:
            assert answer == belief.get(stem.split()[0], truth), (story, stem)


def test_belief_differs_from_reality_only_under_false_belief(evaluation):
    for belief, reality in zip(evaluation[::2], evaluation[1::2], strict=True):
        assert belief.cell == reality.cell and belief.story == reality.story
        assert (belief.kind, reality.kind) == ("belief", "reality")
        assert (belief.answer != reality.answer) == belief.condition.endswith("/false-belief")


def test_evaluation_is_balanced_with_unique_ids(evaluation):
    assert len({story.id for story in evaluation}) == 640
    assert Counter(story.condition for story in evaluation) == dict.fromkeys(CONDITIONS, 80)
    assert Counter(story.condition for story in evaluation[:320]) == dict.fromkeys(CONDITIONS, 40)
    for condition in CONDITIONS:
        beliefs = [story for story in evaluation if story.condition == condition and story.order == 1]
        assert Counter(story.answer for story in beliefs) == {0: 20, 1: 20}


def test_swapping_exchanges_the_two_answers(evaluation):
    by_id = {story.id: story for story in evaluation}
    for name, story in by_id.items():
        twin = by_id[
            name.replace("/original/", "/swapped/")
            if "/original/" in name
            else name.replace("/swapped/", "/original/")
        ]
        first, second = story.choices
        exchanged = " ".join({first: second, second: first}.get(word, word) for word in story.story.split())
        assert twin.choices == story.choices
        assert twin.answer != story.answer
        assert twin.story == exchanged


def test_every_condition_mentions_both_choices(evaluation):
    for story in evaluation:
        assert set(story.choices) <= set(story.story.split())


def test_fisher_split_is_the_false_belief_question_only():
    stories = language.stories(60, split="fisher")
    assert {story.condition for story in stories} == {"contents/false-belief", "transfer/false-belief"}
    assert {story.order for story in stories} == {1}
    assert len({story.id for story in stories}) == 60


def test_balanced_split_has_every_condition_and_question():
    stories = language.stories(64, split="balanced")
    assert {story.condition for story in stories} == {story.condition for story in language.stories(64)}
    assert sum(story.order for story in stories) == len({story.id for story in stories}) / 2 == 32


def combination(story: str, stem: str, choices: tuple[str, ...]) -> tuple[str, str, tuple[str, ...]]:
    thing = re.search(r"puts the (\w+)|fills the (\w+)", story)
    assert thing
    return stem.split()[0], thing[1] or thing[2], tuple(sorted(choices))


def test_training_fisher_and_evaluation_share_no_combination():
    rng = random.Random(0)
    trained = set()
    for _ in range(4000):
        story, asked = language.training_story(rng)
        stem = next(stem for stem, _ in asked if not stem.startswith("the "))
        pair = tuple({answer for _, answer in asked})
        if len(pair) == 2:
            trained.add(combination(story, stem, pair))
    seen = {
        split: {
            combination(story.story, story.question, story.choices)
            for story in language.stories(1000, seed=1, split=split)
            if story.order == 1
        }
        for split in ("fisher", "balanced", "evaluation")
    }
    assert len(trained) > 500 and all(len(found) > 50 for found in seen.values())
    assert not trained & seen["fisher"]
    assert not trained & seen["balanced"]
    assert not trained & seen["evaluation"]
    assert not (seen["fisher"] | seen["balanced"]) & seen["evaluation"]


def test_stories_are_a_function_of_the_seed_and_a_smaller_number_is_a_prefix(evaluation):
    assert language.stories(64) == evaluation[:64]
    assert language.stories(64, seed=1) != evaluation[:64]


def test_torn_cell_is_rounded_up_with_a_warning():
    with pytest.warns(UserWarning, match="rounded up to 4"):
        assert len(language.stories(3)) == 4
    assert len(language.stories(3, split="fisher")) == 3


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="split 'test'"):
        language.stories(4, split="test")
    with pytest.raises(ValueError, match="n=0"):
        language.stories(0)
    scene = language.draw_scene(random.Random(0), "transfer", "training")
    with pytest.raises(ValueError, match="no condition 'open'"):
        scene.tell("open")
    with pytest.raises(ValueError, match="no split 'all'"):
        language.draw_scene(random.Random(0), "transfer", "all")


def test_corpus_is_reproducible_and_disjoint_from_training_text():
    corpus = language.corpus(300)
    rng = random.Random(0)
    trained = {general.document(rng, held_out=False) for _ in range(1000)}
    assert corpus.name == "testbed"
    assert corpus.documents == language.corpus(300).documents
    assert corpus.documents != language.corpus(300, seed=1).documents
    assert corpus.sha256 == sha256_of_text(*corpus.documents)
    assert len(set(corpus.documents)) == 300
    assert not trained & set(corpus.documents)


def test_general_text_tells_no_false_belief_story():
    text = " ".join(language.corpus(300).documents)
    for words in ("comes back", "label", "puts", "thinks that"):
        assert words not in text


def test_slips_exchange_the_asked_fraction_of_answers():
    rng = random.Random(5)
    wrong = asked_in_all = 0
    for _ in range(2000):
        story, asked = language.training_story(rng, slips=0.1)
        truth, belief = simulate(story)
        for stem, answer in asked:
            asked_in_all += 1
            wrong += answer != belief.get(stem.split()[0], truth)
    assert 0.08 < wrong / asked_in_all < 0.12
