from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from tomfisher.tasks import load
from tomfisher.tasks.frames import family
from tomfisher.tasks.generator import FIRST_ORDER as BOTH
from tomfisher.tasks.generator import generate
from tomfisher.tasks.names import EVALUATION_NAMES, FISHER_NAMES
from tomfisher.tasks.story import SECOND_ORDER, Story

EVERYTHING = {"evaluation": 5120, "fisher": 640, "balanced": 5120}


@pytest.mark.parametrize("split", EVERYTHING)
def test_every_story_of_a_pool_is_different(split: str) -> None:
    stories = generate(BOTH, EVERYTHING[split], split=split)
    assert len({story.id for story in stories}) == len(stories) == EVERYTHING[split]
    assert len({story.prompt for story in stories}) == len(stories)
    with pytest.raises(ValueError, match=f"holds {EVERYTHING[split]} stories"):
        generate(BOTH, EVERYTHING[split] + 1, split=split)


def test_the_default_sizes() -> None:
    for name in ("false-belief", "contents", "transfer"):
        assert len(load(name)) == 640 and len(load(name, split="fisher")) == 200


def test_counts_are_balanced() -> None:
    stories = generate(BOTH, 320)
    assert len(stories) == 320
    assert set(Counter(story.condition for story in stories).values()) == {40}
    assert set(Counter(story.group for story in stories).values()) == {20}
    assert set(Counter(story.id.split("/")[4] for story in stories).values()) == {160}
    frames = Counter((s.id.split("/")[0], int(s.id.split("/")[2]) // 16) for s in stories)
    assert len(frames) == 20 and set(frames.values()) == {16}


@pytest.mark.parametrize("n", [4, 36, 100, 324])
def test_counts_that_do_not_divide_differ_by_one_unit_at_most(n: int) -> None:
    counts = Counter(story.condition for story in generate(BOTH, n))
    assert sum(counts.values()) == n
    values = [counts[f"{name}/{condition}"] for name in BOTH for condition in family(name).conditions]
    assert max(values) - min(values) <= 4


def test_cells_and_direction_pairs_are_whole() -> None:
    cells: dict[str, list[Story]] = defaultdict(list)
    for story in generate(BOTH, 100):
        cells[story.cell].append(story)
    for cell, stories in cells.items():
        assert sorted(story.kind for story in stories) == ["belief", "reality"]
        assert len({story.story for story in stories}) == 1
        partner = cell.replace("swapped", "?").replace("as-written", "swapped").replace("?", "as-written")
        assert partner in cells


def test_a_count_that_tears_a_pair_is_rounded_up_and_said() -> None:
    with pytest.warns(
        UserWarning, match="10 questions would split some that belong together, so there are 12"
    ):
        assert len(generate(BOTH, 10)) == 12


@pytest.mark.parametrize(("families", "n"), [(BOTH, 1280), ((SECOND_ORDER,), 3840)])
def test_swapped_stories_exchange_exactly_the_two_words(families: tuple[str, ...], n: int) -> None:
    by_id = {story.id: story for story in generate(families, n)}
    for story in by_id.values():
        if "/as-written/" not in story.id:
            continue
        twin = by_id[story.id.replace("/as-written/", "/swapped/")]
        other = dict(zip(story.choices, story.choices[::-1], strict=True))
        exchanged = re.sub(
            r"\w+", lambda word, other=other: other.get(word.group(), word.group()), story.story
        )
        assert twin.story == exchanged != story.story
        assert twin.question == story.question and twin.choices == story.choices
        assert twin.answer == 1 - story.answer


def test_belief_and_reality_part_only_in_false_belief() -> None:
    pairs: dict[str, dict[str, Story]] = defaultdict(dict)
    for story in generate(BOTH, 640):
        pairs[story.cell][story.kind] = story
    for pair in pairs.values():
        apart = pair["belief"].answer != pair["reality"].answer
        assert apart == (pair["belief"].condition.endswith("/false-belief"))


def test_controls_keep_the_situation_of_the_false_belief_story() -> None:
    by_id = {story.id: story for story in generate(BOTH, 320)}
    for story in by_id.values():
        name, pool, number, condition, direction, kind = story.id.split("/")
        twin = by_id[f"{name}/{pool}/{number}/false-belief/{direction}/{kind}"]
        assert twin.choices == story.choices and twin.question == story.question
        same_truth = twin.answer == story.answer
        if kind == "reality":
            assert same_truth == (condition != "no-transfer")
        elif condition != "false-belief":
            assert same_truth == (condition == "no-transfer")


def test_questions_are_stems_and_prompts_carry_the_prefix() -> None:
    for story in generate(BOTH, 640):
        assert story.prompt.startswith("Complete the following story: ")
        assert story.question[-1].isalpha() and story.story.endswith(".")
        assert (story.order == 1) == (story.id.endswith("/belief"))
        protagonist = story.question.split()[0]
        assert (protagonist in EVALUATION_NAMES.all) == (story.order == 1)
        assert "{" not in story.prompt and "  " not in story.prompt


@pytest.mark.parametrize(("families", "n", "order"), [(BOTH, 640, 1), ((SECOND_ORDER,), 256, 2)])
def test_fisher_samples_are_false_beliefs_of_other_persons(
    families: tuple[str, ...], n: int, order: int
) -> None:
    for story in generate(families, n, split="fisher"):
        assert story.condition.endswith("/false-belief")
        assert story.kind == "belief" and story.order == order
        words = set(story.prompt.replace(".", " ").replace(",", " ").replace("'", " ").split())
        assert words & FISHER_NAMES.all and not words & EVALUATION_NAMES.all


def test_balanced_stories_are_every_condition_of_the_fisher_pool() -> None:
    balanced = generate(BOTH, split="balanced")
    counts = Counter((story.condition, story.kind) for story in balanced)
    assert len(counts) == 16 and set(counts.values()) == {40}
    fisher = {story.id: story for story in generate(BOTH, 640, split="fisher")}
    asked = {s.id: s for s in balanced if s.condition.endswith("/false-belief") and s.kind == "belief"}
    assert asked and asked.items() <= fisher.items()
    assert not {story.prompt for story in balanced} & {story.prompt for story in generate(BOTH)}


def test_same_arguments_same_stories_and_prefixes() -> None:
    assert generate(BOTH, 80, seed=3) == generate(BOTH, 80, seed=3)
    assert generate(BOTH, 80, seed=3) == generate(BOTH, 640, seed=3)[:80]
    assert generate(BOTH, 80, seed=3) != generate(BOTH, 80, seed=4)


def test_an_id_means_the_same_story_whatever_the_seed() -> None:
    first = {story.id: story for story in generate(BOTH, 640, seed=1)}
    second = {story.id: story for story in generate(BOTH, 640, seed=2)}
    shared = first.keys() & second.keys()
    assert shared and all(first[key] == second[key] for key in shared)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="split must be one of"):
        generate(BOTH, split="test")
    with pytest.raises(ValueError, match="at least 1"):
        generate(BOTH, 0)
