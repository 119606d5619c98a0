"""Hi-ToM (Wu et al., 2023): a thing that several people move one after the other; questions of orders 0 to 4.

The file is a JSON object with the list "data". Records that differ in the type of prompting alone are read once.
The fifteen choices are read from the field; they are not shown to the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tomfisher.tasks.formats.base import Asked, Format, belief
from tomfisher.tasks.records import Record, read_records
from tomfisher.tasks.story import Story

NAME = "hitom"
ORDERS = 5


def stories(records: Sequence[Record], part: str) -> list[Story]:
    """Make a story of each record; with deception, conditions begin with `hitom/deception`.

    Raises:
        ValueError: a field is missing or malformed, or the story says nothing of the thing.
    """
    asked = Asked(NAME, part)
    seen = set()
    for record in records:
        story, question, answer = (record.text(field) for field in ("story", "question", "answer"))
        order, deception = record.value.get("question_order"), record.value.get("deception")
        if isinstance(order, bool) or order not in range(ORDERS):
            raise record.refuse(
                f"field 'question_order' must be 0 to {ORDERS - 1}, got {order!r}", "Mend it."
            )
        if not isinstance(deception, bool):
            raise record.refuse(f"field 'deception' must be true or false, got {deception!r}", "Mend it.")
        name = f"{NAME}/deception" if deception else NAME
        condition = (
            belief(name, order, answer, _place(record, story, question)) if order else f"{name}/reality"
        )
        if (story, question) in seen:
            continue
        seen.add((story, question))
        choices = re.findall(r"\b[A-Z]\. ([^,]+)", record.text("choices"))
        asked.add(record, story, question, choices, answer, condition, order)
    return asked.stories


def _place(record: Record, story: str, question: str) -> str:
    """Where the thing that is asked about is at the end."""
    thing = re.search(r"the (\w+)(?: is| really)*\?", question)
    places = thing and re.findall(rf"(?:The {thing[1]} is in|moved the {thing[1]} to) the (\w+)\.", story)
    if not places:
        raise record.refuse(f"the story does not say where the thing of {question!r} is", "Mend the record.")
    return str(places[-1])


FORMAT = Format(
    title="a thing that many move: reality and beliefs of orders 1 to 4, with and without deception",
    source="github.com/ying-hui-he/Hi-ToM_dataset",
    licence="Apache-2.0",
    needs="Hi-ToM_data.json",
    records=read_records,
    stories=stories,
    hub=True,
)
