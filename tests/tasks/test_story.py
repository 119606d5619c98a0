from __future__ import annotations

from typing import Any

import pytest

from tomfisher.tasks.story import COMPLETE_THE_STORY, Story


def story(**changes: Any) -> Story:
    fields: dict[str, Any] = {
        "story": "A box is full of nails.",
        "question": "The box is full of",
        "choices": ("nails", "books"),
        "answer": 0,
        "condition": "contents/open",
        "order": 0,
        "id": "contents/eval/001/open/swapped/reality",
    }
    return Story(**{**fields, **changes})


def test_derived_texts() -> None:
    told = story(template=COMPLETE_THE_STORY)
    prompt = "Complete the following story: A box is full of nails. The box is full of"
    assert told.prompt == prompt
    assert told.answer_text == "nails" and told.full_text == prompt + " nails"


def test_an_empty_question_leaves_no_space() -> None:
    assert story(question="").prompt == "A box is full of nails."


def test_braces_in_a_story_are_no_placeholders() -> None:
    assert story(story="{question} {x} {}").prompt == "{question} {x} {} The box is full of"


def test_kind_cell_and_group() -> None:
    reality, belief = story(), story(order=1, id="contents/eval/001/open/swapped/belief")
    second = story(order=2)
    assert (reality.kind, belief.kind, second.kind) == ("reality", "belief", "belief")
    assert (reality.group, belief.group) == ("contents/open/reality", "contents/open")
    assert reality.cell == belief.cell == "contents/eval/001/open/swapped"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"choices": ("nails",)}, "two or more different"),
        ({"choices": ("nails", "nails")}, "two or more different"),
        ({"choices": ("nails", " nails")}, "differ in more than the white space"),
        ({"gap": "so"}, "a text without letters and digits"),
        ({"choices": ("nails", "")}, "non-empty"),
        ({"answer": 2}, "index into the 2 choices"),
        ({"answer": -1}, "index into the 2 choices"),
        ({"order": -1}, "order must be"),
        ({"story": " "}, "story is empty"),
        ({"template": "{question}"}, "must contain {story}"),
        ({"condition": ""}, "must not be empty"),
        ({"id": ""}, "must not be empty"),
    ],
)
def test_broken_rules_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        story(**changes)
    assert words in str(caught.value)
