from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tomfisher.tasks import available, load
from tomfisher.tasks.story import Story


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """24 stories with two questions each, in two conditions of unequal size."""
    records = []
    for number in range(24):
        condition = "hard" if number % 3 == 0 else "easy"
        for kind in ("belief", "reality"):
            records.append(
                {
                    "story": f"Story {number}.",
                    "question": f"The {kind} is",
                    "choices": ["a", "b"],
                    "answer": "a",
                    "condition": condition,
                    "id": f"item{number}/{kind}",
                }
            )
    return write(tmp_path / "mine.jsonl", records)


def test_every_available_task_loads() -> None:
    first_order = {"false-belief", "contents", "transfer", "testbed"}
    assert set(available()) == first_order | {"second-order", "testbed2"}
    for name in available():
        stories = load(name, n=24)
        assert len(stories) == 24 and all(isinstance(story, Story) for story in stories)


def test_false_belief_is_both_families_in_equal_parts() -> None:
    counts = Counter(story.id.split("/")[0] for story in load("false-belief", n=160))
    assert counts == {"contents": 80, "transfer": 80}
    assert {story.id.split("/")[0] for story in load("contents", n=16)} == {"contents"}


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="contents, transfer, second-order, testbed"):
        load("false_belief")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl"):
        load(tmp_path / "gone.jsonl")


def test_halves_of_a_file_share_no_story(questions: Path) -> None:
    fisher, evaluation = load(questions, split="fisher"), load(questions, split="evaluation")
    assert len(fisher) == len(evaluation) == 24
    assert not {story.story for story in fisher} & {story.story for story in evaluation}
    assert load(str(questions), split="all") == sorted(
        fisher + evaluation,
        key=lambda story: int(story.story.split()[1].rstrip(".")) * 2 + (story.id[-1] == "y"),
    )


def test_halves_do_not_depend_on_seed_or_order(questions: Path, tmp_path: Path) -> None:
    ids = {story.id for story in load(questions, split="fisher", n=24, seed=5)}
    lines = questions.read_text().split("\n")
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(lines[::-1]))
    assert {story.id for story in load(turned, split="fisher")} == ids


def test_n_takes_whole_cells_evenly_over_conditions(questions: Path) -> None:
    stories = load(questions, n=16, split="all", seed=1)
    assert Counter(story.condition for story in stories) == {"hard": 8, "easy": 8}
    assert set(Counter(story.cell for story in stories).values()) == {2}
    assert stories == load(questions, n=16, split="all", seed=1) != load(questions, n=16, split="all", seed=2)
    with pytest.warns(UserWarning, match="would split some that belong together"):
        assert len(load(questions, n=15, split="all")) == 16
    with pytest.raises(ValueError, match="holds 24 stories, but n=48"):
        load(questions, n=48)


def test_questions_about_one_text_never_part(tmp_path: Path) -> None:
    records = [
        {"story": f"Text {i // 3}.", "question": f"Word {i % 3} is", "choices": ["x", "y"], "answer": 0}
        for i in range(30)
    ]
    path = write(tmp_path / "shared.jsonl", records)
    halves = [{story.story for story in load(path, split=split)} for split in ("fisher", "evaluation")]
    assert len(halves[0]) == len(halves[1]) == 5 and not halves[0] & halves[1]


def test_fisher_half_keeps_only_false_beliefs_where_there_are_some(tmp_path: Path) -> None:
    records = [
        {
            "story": f"S{i}.",
            "question": "Q is",
            "choices": ["x", "y"],
            "answer": 0,
            "condition": condition,
            "order": order,
            "id": f"my/file/{i}/{condition.split('/')[1]}/as-written/{order}",
        }
        for i in range(10)
        for condition in ("my/false-belief", "my/open")
        for order in (0, 1)
    ]
    path = write(tmp_path / "beliefs.jsonl", records)
    fisher = load(path, split="fisher")
    assert len(fisher) == 5 and {story.group for story in fisher} == {"my/false-belief"}
    assert len(load(path)) == len(load(path, split="balanced")) == 20
    assert set(fisher) < set(load(path, split="balanced")) and not set(load(path)) & set(
        load(path, split="balanced")
    )
    numbers = [{story.id.split("/")[2] for story in load(path, split=s)} for s in ("fisher", "evaluation")]
    assert not numbers[0] & numbers[1]


def test_one_item_cannot_be_halved(tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", [{"prompt": "A", "choices": ["x", "y"], "answer": 0}])
    with pytest.raises(ValueError, match='split="all"'):
        load(path)
    assert len(load(path, split="all")) == 1
    with pytest.raises(ValueError, match="split must be one of"):
        load(path, split="train")
