from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from tomfisher.tasks.formats import read_published

STRUCTURE = (
    "Ivo entered the attic. Jana entered the attic. "
    "Ivo moved the ring to the tin box, which is also located in the attic. Jana left the attic. "
    "Ivo moved the ring to the desk drawer, which is also located in the attic. "
    "Ivo told privately to Jana that the ring is in the cellar. "
    "Ivo moved the cup to the porch, leaving the tray in its original location."
)
COLUMNS = (
    "story_structure",
    "infilled_story",
    "question",
    "expected_answer",
    "qprop=params",
    "qprop=nth_order",
)
ASKED = [  # question, answer, parameters, order, condition, choices
    (
        *("In which container was the ring at the beginning?", "tin box"),
        *(
            "(None, 'ring', 'memory-container_location')",
            "-1",
            "exploretom/memory",
            {"tin box", "desk drawer"},
        ),
    ),
    (
        *("In which room is the cup now?", "porch"),
        *(
            "(None, 'cup', 'ground_truth-room_location')",
            "-1",
            "exploretom/reality",
            {"attic", "porch", "cellar"},
        ),
    ),
    (
        *("In which container will Jana search for the ring?", "tin box"),
        *("(['Jana'], 'ring', 'container_location-False')", "1"),
        *("exploretom/false-belief", {"tin box", "desk drawer"}),
    ),
    (
        *("In which container does Jana think that Ivo will search for the ring?", "desk drawer"),
        *("(['Jana', 'Ivo'], 'ring', 'container_location-True')", "2"),
        *("exploretom/second-order/true-belief", {"tin box", "desk drawer"}),
    ),
    (
        *(
            "Does Jana know about the move? Answer yes or no.",
            "no",
            "(['Jana'], 'the move', '<knowledge>-False')",
            "1",
        ),
        *("exploretom/knowledge/false-belief", {"yes", "no"}),
    ),
    (
        *(
            "What does Ivo think about Jana's belief on it? (knows about it / does not know about it)",
            "knows about it",
        ),
        *("(['Ivo', 'Jana'], 'it', '<knowledge>-True')", "2"),
        *("exploretom/second-order/knowledge/true-belief", {"knows about it", "does not know about it"}),
    ),
    (
        *("Does Jana believe that the ring is wet? Answer yes or no.", "yes"),
        *("(['Jana'], 'ring', '<state_update> is wet')", "1", "exploretom/state", {"yes", "no"}),
    ),
]


def row(
    question: str, answer: str, params: str, order: str, infilled: str = "Ivo and Jana, as prose."
) -> list[str]:
    return [STRUCTURE, infilled, question, answer, params, order]


def write(path: Path, *rows: list[str]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def test_questions_conditions_and_choices(tmp_path: Path) -> None:
    path = write(
        tmp_path / "sample.csv", *(row(*asked[:4]) for asked in ASKED), row(*ASKED[2][:4], infilled="")
    )
    *stories, bare = read_published("exploretom", path)
    for story, (question, answer, _, order, condition, choices) in zip(stories, ASKED, strict=True):
        assert (story.question, story.answer_text, story.condition) == (question, answer, condition)
        assert story.order == max(int(order), 0) and set(story.choices) == choices, question
        assert story.story == "Ivo and Jana, as prose."
    assert bare.story == STRUCTURE and {story.scene for story in stories} == {bare.scene}


def test_one_container_is_asked_against_the_rooms(tmp_path: Path) -> None:
    structure = (
        "Ivo entered the attic. Ivo moved the ring to the tin box, which is also located in the attic."
    )
    cells = row(
        "In which container is the ring now?",
        "tin box",
        "(None, 'ring', 'ground_truth-container_location')",
        "-1",
    )
    (story,) = read_published("exploretom", write(tmp_path / "one.csv", [structure, *cells[1:]]))
    assert set(story.choices) == {"tin box", "attic"}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        (0, "", "field 'story_structure' must be a non-empty text"),
        (3, "moon", "the right answer 'moon' is none of the possible ones: 'tin box', 'desk drawer'"),
        (4, "ring", "field 'qprop=params' must be a tuple that ends in a text, got 'ring'"),
        (5, "3", "field 'qprop=nth_order' must be -1, 1 or 2, got '3'"),
        (None, None, "the header names 6 columns, got 5 cells"),
    ],
)
def test_malformed_rows(tmp_path: Path, column: int | None, value: Any, reason: str) -> None:
    good = row(*ASKED[2][:4])
    bad = good[:-1] if column is None else [value if i == column else cell for i, cell in enumerate(good)]
    path = write(tmp_path / "sample.csv", good, bad)
    with pytest.raises(ValueError) as caught:
        read_published("exploretom", path)
    assert str(caught.value).startswith(f"{path}, line 3, record 2: ") and reason in str(caught.value)
