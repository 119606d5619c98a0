"""The language against a simulation that reads the stories sentence by sentence and tracks who knows what."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable

import pytest

from tomfisher.files import sha256_of_text
from tomfisher.testbed import general, language


def simulate(story: str) -> tuple[str, dict[str, str], dict[tuple[str, str], str]]:
    """Truth, belief of each person, and (a, b): what a thinks that b believes; written without the generator."""
    truth = label = ""
    present: set[str] = set()
    belief: dict[str, str] = {}
    attributed: dict[tuple[str, str], str] = {}

    def learn(person: str, witnesses: set[str]) -> None:
        belief[person] = truth
        attributed.update({(witness, person): truth for witness in witnesses if witness != person})

    for sentence in story.removesuffix(" .").split(" . "):
        if match := re.fullmatch(r"(\w+) and (\w+) are in the room", sentence):
            present = set(match.groups())
            assert len(present) == 2
        elif match := re.fullmatch(r"(\w+) (?:puts|moves) the \w+ (?:in|to) the (\w+)", sentence):
            assert match[1] in present, sentence
            truth = match[2]
            for person in present:
                learn(person, present)
        elif match := re.fullmatch(r"(\w+) fills the \w+ with (\w+)", sentence):
            truth = match[2]
            learn(match[1], present)
        elif match := re.fullmatch(r"the label says (\w+)", sentence):
            label = match[1]
        elif match := re.fullmatch(r"(\w+) reads the label", sentence):
            belief[match[1]] = label
        elif match := re.fullmatch(r"(\w+) looks in the \w+", sentence):
            learn(match[1], present)
        elif match := re.fullmatch(r"(\w+) leaves the room", sentence):
            present = present - {match[1]}
        elif match := re.fullmatch(r"(\w+) tells (\w+) about it", sentence):
            assert belief[match[1]] == truth
            learn(match[2], {match[1]})
        else:
            known = r"it is \w+|\w+ is \w+|\w+ stays in the room|\w+ looks at the \w+|there is some \w+ on the floor"
            assert re.fullmatch(known, sentence), sentence
    return truth, belief, attributed


def answer_of(story: str, stem: str) -> str:
    truth, belief, attributed = simulate(story)
    if match := re.fullmatch(r"(\w+) thinks that (\w+) looks for the \w+ in the", stem):
        return attributed[match[1], match[2]]
    return truth if stem.startswith("the ") else belief[stem.split()[0]]


@pytest.fixture(scope="module", params=[False, True], ids=["first order", "second order too"])
def second_order(request):
    return request.param


@pytest.fixture(scope="module")
def evaluation(second_order):
    return language.stories(second_order=second_order)


@pytest.fixture(scope="module")
def conditions(second_order):
    families = language.FAMILIES if second_order else language.CONDITIONS
    return {f"{family}/{condition}" for family, names in families.items() for condition in names}


def test_every_answer_agrees_with_the_simulation(evaluation, second_order):
    fisher = language.stories(split="fisher", second_order=second_order)
    assert (len(evaluation), len(fisher)) == ((960, 300) if second_order else (640, 200))
    for story in [*evaluation, *fisher]:
        assert story.answer_text == answer_of(story.story, story.question), story.full_text


def test_training_answers_agree_with_the_simulation(second_order):
    rng = random.Random(3)
    nested = 0
    for _ in range(600):
        story, asked = language.training_story(rng, second_order=second_order)
        nested += any(re.match(r"\w+ thinks that \w+ looks", stem) for stem, _ in asked)
        for stem, answer in asked:
            assert answer == answer_of(story, stem), (story, stem)
    assert 150 < nested < 250 if second_order else nested == 0


def test_the_two_questions_of_a_cell_differ_only_under_false_belief(evaluation):
    for above, below in zip(evaluation[::2], evaluation[1::2], strict=True):
        assert above.cell == below.cell and above.story == below.story
        nested = above.condition.startswith("second-order/")
        assert (above.order, below.order) == ((2, 1) if nested else (1, 0))
        assert (above.kind, below.kind) == ("belief", "first-order" if nested else "reality")
        assert (above.answer != below.answer) == above.condition.endswith("/false-belief")


def test_evaluation_is_balanced_with_unique_ids(evaluation, conditions):
    assert len({story.id for story in evaluation}) == len(evaluation)
    assert Counter(story.condition for story in evaluation) == dict.fromkeys(conditions, 80)
    half = evaluation[: len(evaluation) // 2]
    assert Counter(story.condition for story in half) == dict.fromkeys(conditions, 40)
    asked = [(story.condition, story.order, story.answer) for story in evaluation if story.order]
    assert set(Counter(asked).values()) == {20}


def test_swapping_exchanges_the_two_answers(evaluation):
    by_id = {story.id: story for story in evaluation}
    for name, story in by_id.items():
        if "/original/" in name:
            twin = by_id[name.replace("/original/", "/swapped/")]
            first, second = story.choices
            words = {first: second, second: first}
            exchanged = " ".join(words.get(word, word) for word in story.story.split())
            assert (twin.choices, twin.story) == (story.choices, exchanged)
            assert twin.answer != story.answer


def test_every_condition_mentions_both_choices(evaluation):
    for story in evaluation:
        assert set(story.choices) <= set(story.story.split())


def test_no_new_word_is_needed(evaluation):
    words = set(language.vocabulary())
    assert all(set(story.full_text.split()) <= words for story in evaluation)


def test_the_conditions_of_second_order_end_alike_so_the_last_sentence_gives_nothing_away():
    stories = language.stories(960, second_order=True)
    second = [s.story.split() for s in stories if s.condition.startswith("second-order/")]
    ends = {tuple(words[-10:-5]) for words in second}
    assert ends == {("leaves", "the", "room", ".", person) for person in {words[-6] for words in second}}


def test_first_order_draws_are_what_they_were_without_second_order():
    assert not any(s.condition.startswith("second-order") for s in language.stories(64))
    texts = [story.full_text for story in language.stories(640)]
    assert sha256_of_text(*texts) == "27529683ec33e58624d86dfd39fb08b9b1fa87b482a94257b248d4de3f5c2b1e"


def test_fisher_split_is_the_false_belief_question_only(second_order):
    stories = language.stories(30 * (3 if second_order else 2), split="fisher", second_order=second_order)
    expected = {("contents/false-belief", 1): 30, ("transfer/false-belief", 1): 30}
    expected |= {("second-order/false-belief", 2): 30} if second_order else {}
    assert Counter((story.condition, story.order) for story in stories) == expected
    assert len({story.id for story in stories}) == len(stories)


def test_balanced_split_has_every_condition_and_question():
    stories = language.stories(64, split="balanced")
    assert {story.condition for story in stories} == {story.condition for story in language.stories(64)}
    assert sum(story.order for story in stories) == len({story.id for story in stories}) / 2 == 32


def combination(story: str, stem: str, choices: Iterable[str]) -> tuple[bool, str, str, tuple[str, ...]]:
    """Whether of second order, protagonist, thing and answers; `stem` is that of the highest order."""
    person = re.search(r"(\w+) (?:looks for|thinks that) the ", stem)
    thing = re.search(r"(?:puts|fills) the (\w+)", story)
    assert person and thing
    return person.start() > 0, person[1], thing[1], tuple(sorted(choices))


def test_training_fisher_and_evaluation_share_no_combination(second_order):
    rng = random.Random(0)
    trained = set()
    for _ in range(4000):
        story, asked = language.training_story(rng, second_order=second_order)
        stem = max(
            (stem for stem, _ in asked), key=lambda text: ("thinks" in text, not text.startswith("the "))
        )
        pair = {answer for _, answer in asked}
        if len(pair) == 2:
            trained.add(combination(story, stem, pair))
    seen = {
        split: {
            combination(story.story, story.question, story.choices)
            for story in language.stories(1000, seed=1, split=split, second_order=second_order)
            if story.kind == "belief"
        }
        for split in ("fisher", "balanced", "evaluation")
    }
    assert len(trained) > 500 and all(len(combinations) > 50 for combinations in seen.values())
    assert not trained & seen["fisher"]
    assert not trained & seen["balanced"]
    assert not trained & seen["evaluation"]
    assert not (seen["fisher"] | seen["balanced"]) & seen["evaluation"]


def test_stories_are_a_function_of_the_seed_and_a_smaller_number_is_a_prefix(evaluation, second_order):
    assert language.stories(64, second_order=second_order) == evaluation[:64]
    assert language.stories(64, seed=1, second_order=second_order) != evaluation[:64]


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
        for stem, answer in asked:
            asked_in_all += 1
            wrong += answer != answer_of(story, stem)
    assert 0.08 < wrong / asked_in_all < 0.12
