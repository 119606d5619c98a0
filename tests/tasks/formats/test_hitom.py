from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tomfisher.tasks.formats import read_published

STORY = (
    "1 Ada, Ben and Cy entered the den.\n2 The pear is in the red_box.\n3 Ada moved the pear to the tin.\n"
    "4 Ada exited the den.\n5 Ben moved the pear to the jar.\n\n"
)
ASKED = {
    "Where is the pear really?": ("jar", "hitom/reality", 0),
    "Where does Ada really think the pear is?": ("tin", "hitom/false-belief", 1),
    "Where does Ben think Ada thinks the pear is?": ("tin", "hitom/second-order/false-belief", 2),
    "Where does Cy think Ben thinks Cy thinks the pear is?": ("jar", "hitom/third-order/true-belief", 3),
}


def record(question: str, answer: str, order: int, **other: Any) -> dict[str, Any]:
    choices = "A. red_box, B. tin, C. jar, D. blue_pantry"
    fields = {"story": STORY, "question": question, "choices": choices, "answer": answer}
    return {"prompting_type": "CoTP", "deception": False, "question_order": order, **fields, **other}


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"data": records}, indent=1))
    return path


def test_questions_and_conditions(tmp_path: Path) -> None:
    records = [record(question, answer, order) for question, (answer, _, order) in ASKED.items()]
    again = [{**one, "prompting_type": "VP"} for one in records]
    stories = read_published("hitom", write(tmp_path / "h.json", *records, *again))
    assert {s.question: (s.answer_text, s.condition, s.order) for s in stories} == ASKED
    assert len(stories) == 4 and len({s.scene for s in stories}) == 1
    assert (
        stories[0].choices == ("red_box", "tin", "jar", "blue_pantry") and stories[0].group == "hitom/reality"
    )
    (lie,) = read_published("hitom", write(tmp_path / "lie.json", {**records[1], "deception": True}))
    assert lie.condition == "hitom/deception/false-belief"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question_order": 5}, "field 'question_order' must be 0 to 4, got 5"),
        ({"deception": "no"}, "field 'deception' must be true or false, got 'no'"),
        ({"answer": "bowl"}, "the right answer 'bowl' is none of the possible ones"),
        ({"question": "Where does Ada think the plum is?"}, "the story does not say where the thing"),
        ({"story": 3}, "field 'story' must be a non-empty text"),
    ],
)
def test_malformed_records(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    good = record("Where does Ada really think the pear is?", "tin", 1)
    path = write(
        tmp_path / "h.json", good, {**good, "question": "Where does Ben really think the pear is?", **changes}
    )
    with pytest.raises(ValueError) as caught:
        read_published("hitom", path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line ") and "record 2 of 'data': " in message and reason in message


def test_published_sample(sample: Callable[[str], Path]) -> None:
    path = sample("hi_tom_sample.json")
    stories = read_published("hitom", path)
    assert Counter(s.group for s in stories) == {
        "hitom/reality": 40,
        "hitom/true-belief": 11,
        "hitom/false-belief": 9,
        "hitom/second-order/true-belief": 5,
        "hitom/second-order/false-belief": 15,
        "hitom/third-order/true-belief": 6,
        "hitom/third-order/false-belief": 14,
        "hitom/fourth-order/true-belief": 6,
        "hitom/fourth-order/false-belief": 14,
    }
    assert len(stories) == len(json.loads(path.read_text())["data"]) == 120
    assert all(len(s.choices) == 15 for s in stories) and len({s.scene for s in stories}) == 43


def test_a_false_belief_is_not_where_the_sample_says_that_the_thing_is(sample: Callable[[str], Path]) -> None:
    stories = read_published("hitom", sample("hi_tom_sample.json"))
    real = {s.scene: s.answer_text for s in stories if s.order == 0}
    beliefs = [s for s in stories if s.order and s.scene in real]
    assert len(beliefs) > 30
    for story in beliefs:
        assert story.condition.endswith("/true-belief") == (story.answer_text == real[story.scene])
