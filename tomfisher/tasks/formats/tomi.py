"""ToMi (Le, Boureau and Nickel, 2019): stories of a thing that is moved, with questions of orders 0 to 2.

Numbered lines tell a story; a line with tabs asks about the story so far: question, answer, supporting line. A line
with the number 1 begins the next story. The trace file is not needed: what is asked shows in the question, and a
belief is false where the answer is not the place in which the thing is at the end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from tomfisher.tasks.formats.base import Asked, Format, belief
from tomfisher.tasks.records import Record, read_text_file
from tomfisher.tasks.story import Story

NAME = "tomi"
_LINE = re.compile(r"(\d+) (.+)")
_QUESTIONS = {  # what is asked, and about which thing
    "memory": re.compile(r"Where was the (\w+) at the beginning\?"),
    "reality": re.compile(r"Where is the (\w+) really\?"),
    "first-order": re.compile(r"Where will \w+ look for the (\w+)\?"),
    "second-order": re.compile(r"Where does \w+ think that \w+ searches for the (\w+)\?"),
}
_REMEDY = "Questions are those of ToMi, such as 'Where will Anne look for the apple?'."


def records(path: str | os.PathLike[str]) -> list[Record]:
    """Read the questions of a file, each with its story, a sentence a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is malformed, or there is no question: with file, line and reason.
    """
    told: list[str] = []
    found: list[Record] = []
    for number, line in enumerate(read_text_file(path).split("\n"), 1):
        if not line.strip():
            continue
        record = Record({}, f"{path}, line {number}", len(found) + 1)
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            raise record.refuse(
                f"expected a number and a sentence, got {line[:60]!r}", "Write '1 Anne entered the hall.'."
            )
        if match[1] == "1":
            told = []
        question, *answer = match[2].split("\t")
        if not answer:
            told.append(question)
            continue
        record.value.update(story="\n".join(told), question=question.strip(), answer=answer[0].strip())
        found.append(record)
    if not found:
        raise ValueError(f"{path} holds no question, which is a line with tabs. Give a file of ToMi.")
    return found


def stories(records: Sequence[Record], part: str) -> list[Story]:
    """Make a story of each question; the choices are the containers in which the thing has been.

    Raises:
        ValueError: a question is none of ToMi's, or the story says nothing of the thing: with file, line and reason.
    """
    asked = Asked(NAME, part)
    for record in records:
        story, question, answer = (record.text(field) for field in ("story", "question", "answer"))
        kind, thing = _kind(record, question)
        places = re.findall(rf"\b(?:The {thing} is in|moved the {thing} to) the (\w+)\.", story)
        if not places:
            raise record.refuse(f"the story does not say where the {thing} is", "Mend the story.")
        order = {"first-order": 1, "second-order": 2}.get(kind, 0)
        condition = belief(NAME, order, answer, places[-1]) if order else f"{NAME}/{kind}"
        asked.add(record, story, question, places, answer, condition, order)
    return asked.stories


def _kind(record: Record, question: str) -> tuple[str, str]:
    for kind, form in _QUESTIONS.items():
        if match := form.fullmatch(question):
            return kind, match[1]
    raise record.refuse(f"{question!r} is no question of ToMi", _REMEDY)


FORMAT = Format(
    title="a thing is moved in or out of sight: memory, reality, first- and second-order beliefs",
    source="github.com/facebookresearch/ToMi",
    licence="CC BY-NC 4.0",
    needs="test.txt of tomi_balanced_story_types.zip (or train, val)",
    records=records,
    stories=stories,
)
