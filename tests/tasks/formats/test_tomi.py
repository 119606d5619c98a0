from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tomfisher.tasks.formats import read_published

ANNE_IS_AWAY = """\
1 Anne entered the hall.
2 Bert entered the hall.
3 The plum is in the red_box.
4 Anne exited the hall.
5 Anne likes the shirt
6 Bert moved the plum to the tin.
"""
QUESTIONS = {  # question: answer, condition, order
    "Where was the plum at the beginning?": ("red_box", "tomi/memory", 0),
    "Where is the plum really?": ("tin", "tomi/reality", 0),
    "Where will Anne look for the plum?": ("red_box", "tomi/false-belief", 1),
    "Where will Bert look for the plum?": ("tin", "tomi/true-belief", 1),
    "Where does Bert think that Anne searches for the plum?": (
        "red_box",
        "tomi/second-order/false-belief",
        2,
    ),
    "Where does Anne think that Bert searches for the plum?": ("tin", "tomi/second-order/true-belief", 2),
}


def write(path: Path, questions: dict[str, str], story: str = ANNE_IS_AWAY) -> Path:
    number = story.count("\n") + 1
    path.write_text("".join(f"{story}{number} {q}\t{a}\t1 2\n" for q, a in questions.items()))
    return path


def test_questions_and_conditions(tmp_path: Path) -> None:
    path = write(tmp_path / "test.txt", {q: a for q, (a, *_) in QUESTIONS.items()})
    stories = read_published("tomi", path)
    assert {s.question: (s.answer_text, s.condition, s.order) for s in stories} == QUESTIONS
    assert {s.scene for s in stories} == {stories[0].scene} and stories[0].scene.startswith("tomi/test/")
    assert all(set(s.choices) == {"red_box", "tin"} for s in stories)
    assert stories[2].prompt == (
        "Anne entered the hall.\nBert entered the hall.\nThe plum is in the red_box.\nAnne exited the hall.\n"
        "Anne likes the shirt\nBert moved the plum to the tin.\n"
        "Question: Where will Anne look for the plum?\nAnswer:"
    )
    assert [s.group for s in stories[:2]] == ["tomi/memory", "tomi/reality"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 Anne sings.\nno number\n", "line 2: expected a number and a sentence, got 'no number'"),
        ("1 Anne sings.\n2 Who sings?\tAnne\t1\n", "line 2: 'Who sings?' is no question of ToMi"),
        (
            "1 Anne sings.\n2 Where is the plum really?\ttin\t1\n",
            "line 2: the story does not say where the plum",
        ),
        (
            "1 The plum is in the tin.\n2 Where is the plum really?\tjar\t1\n",
            "line 2: the right answer 'jar' is none of the possible ones: 'tin'",
        ),
        ("1 Anne sings.\n", "holds no question"),
    ],
)
def test_malformed_lines(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_published("tomi", path)
    assert str(caught.value).startswith(str(path)) and reason in str(caught.value)


def test_published_sample(sample: Callable[[str], Path]) -> None:
    """The trace names the kind of each question: "tom" where the belief differs from what is the case."""
    stories = read_published("tomi", sample("tomi_fb_all_test_head.txt"))
    trace = sample("tomi_fb_all_test_head.trace").read_text().split()
    assert len(stories) == len(trace) == 476 and len({s.scene for s in stories}) == 80
    for story, line in zip(stories, trace, strict=True):
        kind = line.split(",")[-2]
        order = {"first": 1, "second": 2}.get(kind.split("_")[0], 0)
        assert story.order == order
        if order:
            assert story.condition.endswith("true-belief" if kind.endswith("no_tom") else "false-belief"), (
                line
            )
        else:
            assert story.condition == f"tomi/{kind}"
    assert Counter(s.group for s in stories) == {
        "tomi/memory": 80,
        "tomi/reality": 79,
        "tomi/true-belief": 129,
        "tomi/false-belief": 30,
        "tomi/second-order/true-belief": 116,
        "tomi/second-order/false-belief": 42,
    }
