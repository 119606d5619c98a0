"""ExploreToM (Sclar et al., 2024): stories searched for by a program such that a model answers them wrongly.

A CSV of questions. The field `qprop=params` ends in what is asked, with "-True" or "-False" where the belief is or is
not what is the case: that says whether it is a false belief. Choices are yes and no, "knows about it" and "does not
know about it", or the rooms or containers that the field `story_structure` names. What the model reads is
`infilled_story`, or the structure where that is empty.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from tomfisher.tasks.formats.base import Asked, Format, level_of
from tomfisher.tasks.formats.rows import read_table
from tomfisher.tasks.records import Record
from tomfisher.tasks.story import Story

NAME = "exploretom"
YES_NO = ("yes", "no")
KNOWS = ("knows about it", "does not know about it")
BELIEFS = {"True": "true-belief", "False": "false-belief"}
_CONTAINER = re.compile(r"moved the [^.]+? to the ([^.,]+), which is also located in the ([^.,]+)")
_ROOM = re.compile(r"(?:entered|left) the ([^.,]+)|moved the [^.]+? to the ([^.,]+)[.,]")
_IN = re.compile(r"\bis in the ([^.,]+)")


def stories(records: Sequence[Record], part: str) -> list[Story]:
    """Make a story of each row; those on one structure are one scene.

    Raises:
        ValueError: a field is missing or malformed, or the answer is nothing that the story names.
    """
    asked = Asked(NAME, part)
    for record in records:
        structure = record.text("story_structure")
        story = str(record.value.get("infilled_story") or "").strip() or structure
        question, answer = record.text("question"), record.text("expected_answer")
        what, order = _asked(record)
        if "location" in what:
            choices = _places(structure, rooms="room_location" in what)
        else:
            choices = list(KNOWS if answer in KNOWS else YES_NO)
        asked.add(record, story, question, choices, answer, _condition(what, order), order, structure)
    return asked.stories


def _asked(record: Record) -> tuple[str, int]:
    """What is asked, as the last of the parameters names it, and the order: 0 for facts."""
    try:
        *_, what = ast.literal_eval(str(record.value.get("qprop=params")))
    except (ValueError, SyntaxError, TypeError):
        what = None
    if not isinstance(what, str):
        raise record.refuse(
            f"field 'qprop=params' must be a tuple that ends in a text, got {record.value.get('qprop=params')!r}",
            "Mend it.",
        )
    order = str(record.value.get("qprop=nth_order")).strip()
    if order not in ("-1", "0", "1", "2"):
        raise record.refuse(f"field 'qprop=nth_order' must be -1, 1 or 2, got {order!r}", "Mend it.")
    return what, max(int(order), 0)


def _condition(what: str, order: int) -> str:
    if order == 0:
        return f"{NAME}/{'reality' if what.startswith('ground_truth') else 'memory'}"
    level = level_of(order)
    kind = "state" if what.startswith("<state_update>") else "knowledge" if what.startswith("<know") else ""
    held = BELIEFS.get(what.rpartition("-")[2])
    return "/".join(filter(None, (NAME, level.rstrip("/"), kind, held or ("" if kind else "belief"))))


def _places(structure: str, rooms: bool) -> list[str]:
    """The rooms or containers of a story; both where there is one alone."""
    inside = _CONTAINER.findall(structure)
    in_rooms = [room for _, room in inside]
    for sentence in structure.split(". "):
        if not _CONTAINER.search(sentence):
            in_rooms += [place for pair in _ROOM.findall(f"{sentence}.") for place in pair if place]
    holders = [container for container, _ in inside]
    told = [place for place in _IN.findall(structure) if place not in holders]
    wanted, others = (in_rooms + told, holders) if rooms else (holders, in_rooms)
    return wanted if len(set(wanted)) > 1 else wanted + others


FORMAT = Format(
    title="stories of moves, secrets and talk: memory, reality, knowledge, first- and second-order beliefs",
    source="huggingface.co/datasets/facebook/ExploreToM",
    licence="CC BY-NC 4.0",
    needs="ExploreToM-data-sample.csv",
    records=read_table,
    stories=stories,
    hub=True,
)
