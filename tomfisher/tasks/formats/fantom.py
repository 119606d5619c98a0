"""FANToM (Kim et al., 2023): conversations that people leave and join, so that some miss what is said.

The file is a JSON list of sets of questions on a part of a conversation. A belief is false where what the person
missed is inaccessible to them. Asked of the short context, which is what the authors evaluate first:

- the fact question, with its two answers, as reality;
- each belief question, with its two answers;
- whether a person knows the answer to the fact question, and whether they know the fact: yes or no.

The questions that ask for lists of names have no choices, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tomfisher.tasks.formats.base import QUESTION, Asked, Format, level_of
from tomfisher.tasks.records import Record, read_records
from tomfisher.tasks.story import Story

NAME = "fantom"
ACCESS = {"accessible": "true-belief", "inaccessible": "false-belief"}
YES_NO = ("yes", "no")
BINARY = {  # the list of questions, the condition, and what stands before the question
    "answerabilityQAs_binary": ("answerability", "Target: {fact}"),
    "infoAccessibilityQAs_binary": ("info-access", "Information: {fact} {answer}"),
}


def stories(records: Sequence[Record], part: str) -> list[Story]:
    """Make a story of every question that has choices; those on one conversation are one scene.

    Raises:
        ValueError: a field is missing or malformed.
    """
    asked = Asked(NAME, part)
    for record in records:
        story = record.text("short_context")
        scene = f"conversation {record.value.get('conv_id', story)}"
        fact = _object(record, record.value.get("factQA"), "factQA")
        question, answer = fact.text("question"), fact.text("correct_answer")
        asked.add(record, story, question, _pair(fact), answer, f"{NAME}/reality", 0, scene)
        for qa in _objects(record, "beliefQAs"):
            condition, order = _belief(qa)
            asked.add(
                *(record, story, qa.text("question"), _pair(qa), qa.text("correct_answer")),
                *(condition, order, scene),
            )
        for field, (what, before) in BINARY.items():
            shown = before.format(fact=question, answer=answer).replace("{", "{{").replace("}", "}}")
            for qa in _objects(record, field):
                right = qa.text("correct_answer").split(":")[0]  # "no:long" is a no
                asked.add(
                    *(record, story, f"{qa.text('question')} Answer yes or no.", YES_NO, right),
                    *(f"{NAME}/{what}", 1, scene, QUESTION.replace("{story}", f"{{story}}\n{shown}")),
                )
    return asked.stories


def _belief(qa: Record) -> tuple[str, int]:
    access, kind = qa.value.get("missed_info_accessibility"), qa.text("tom_type")
    order = {"first-order": 1, "second-order": 2}.get(kind.split(":")[0])
    if access not in ACCESS:
        raise qa.refuse(
            f"field 'missed_info_accessibility' must be one of {', '.join(ACCESS)}, got {access!r}",
            "Mend it.",
        )
    if order is None:
        raise qa.refuse(f"field 'tom_type' must be first-order or second-order:..., got {kind!r}", "Mend it.")
    level = level_of(order)
    return f"{NAME}/{level}{ACCESS[access]}", order


def _pair(qa: Record) -> list[str]:
    return [qa.text("correct_answer"), qa.text("wrong_answer")]


def _objects(record: Record, field: str) -> Iterator[Record]:
    entries = record.value.get(field)
    if not isinstance(entries, list):
        raise record.refuse(
            f"field {field!r} must be a list of questions, got {entries!r}", "Mend the record."
        )
    for number, entry in enumerate(entries, 1):
        yield _object(record, entry, f"question {number} of {field}")


def _object(record: Record, value: Any, what: str) -> Record:
    if not isinstance(value, dict):
        raise record.refuse(f"{what} must be an object, got {value!r}", "Mend the record.")
    return Record(value, f"{record.where}, {what}", record.number)


FORMAT = Format(
    title="who knows what was said while they were away: facts, first- and second-order beliefs, yes or no",
    source="github.com/skywalker023/fantom",
    licence="MIT",
    needs="fantom_v1.json",
    records=read_records,
    stories=stories,
    hub=True,
)
