"""SocialIQA (Sap et al., 2019): what people in a short scene feel, want, need and are like.

Lines of JSON with context, question and three answers; the labels, 1 to 3, stand in a file beside it whose name ends
in `-labels.lst`, or in the field "label" of each record.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tomfisher.tasks.formats.base import Asked, Format
from tomfisher.tasks.records import Record, read_records, read_text_file
from tomfisher.tasks.story import Story

NAME = "socialiqa"
ANSWERS = ("answerA", "answerB", "answerC")


def records(path: str | os.PathLike[str]) -> list[Record]:
    """Read the records, with the labels of the file beside them.

    Raises:
        FileNotFoundError: there is no such file, or none of labels while the records have none.
        ValueError: a file is malformed, or there are not as many labels as records.
    """
    found = read_records(path)
    for record in found:
        if not isinstance(record.value, dict):
            raise record.refuse(f"expected an object, got {record.value!r}", "Mend the record.")
    if all("label" in record.value for record in found):
        return found
    beside = Path(path).with_name(f"{Path(path).stem}-labels.lst")
    if not beside.exists():
        raise FileNotFoundError(
            f"{path} has no labels, and there is no {beside.name} beside it. Put the published file of labels there."
        )
    labels = read_text_file(beside).split()
    if len(labels) != len(found):
        raise ValueError(
            f"{beside} holds {len(labels)} labels for the {len(found)} records of {path}. Give both of one part."
        )
    for record, label in zip(found, labels, strict=True):
        record.value["label"] = label
    return found


def stories(records: Sequence[Record], part: str) -> list[Story]:
    """Make a story of each record, under the one condition `socialiqa/question`.

    Raises:
        ValueError: a field is missing, or the label is not 1, 2 or 3.
    """
    asked = Asked(NAME, part)
    for record in records:
        label = str(record.value.get("label", "")).strip()
        if label not in ("1", "2", "3"):
            raise record.refuse(f"the label must be 1, 2 or 3, got {label!r}", "Mend it.")
        choices = [record.text(field) for field in ANSWERS]
        story, question = record.text("context"), record.text("question")
        asked.add(record, story, question, choices, choices[int(label) - 1], f"{NAME}/question", 1)
    return asked.stories


FORMAT = Format(
    title="what people in a scene feel, want and need: three answers",
    source="huggingface.co/datasets/allenai/social_i_qa",
    licence="not stated with the files",
    needs="dev.jsonl, with dev-labels.lst beside it",
    records=records,
    stories=stories,
    hub=True,
)
