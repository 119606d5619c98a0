"""Items by experts, as Gandhi et al. (2023) publish them: those of Ullman, of Kosinski and of Dodell-Feder et al.

A row (`;` between cells, no header) is story, question, right answer, and one or two wrong ones. Rows with the same
question vary one scene.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import partial

from tomfisher.tasks.formats.base import Asked, Format, belief
from tomfisher.tasks.formats.rows import read_cells
from tomfisher.tasks.records import Record
from tomfisher.tasks.story import Story

UNDECIDED = "she has no guess", "he has no guess"
_PUT = re.compile(r"(?:filled with|bag with|puts it) ((?:(?:in|on) the )?\w+)")


def records(path: str | os.PathLike[str]) -> list[Record]:
    """Read the rows; the value of a record is the list of its cells."""
    return read_cells(path, ";", (4, 5))


def stories(
    records: Sequence[Record], part: str, name: str, condition_of: Callable[[Record], str]
) -> list[Story]:
    """Make a story of each row.

    Args:
        records: as `records` reads them.
        part: of the data set.
        name: of the format.
        condition_of: the condition of a row.
    """
    asked = Asked(name, part)
    for record in records:
        story, question, right, *wrong = record.value
        asked.add(record, story, question, [right, *wrong], right, condition_of(record), 1, scene=question)
    return asked.stories


def _varied(record: Record) -> str:
    """Ullman's variations: what is in the bag, or where the cat was put last, and whether it is believed."""
    story, _, *choices = record.value
    right = choices[0]
    if right in UNDECIDED:
        return "ullman/no-belief"
    real = [place for place in _PUT.findall(story) if place in choices]
    if not real:
        raise record.refuse("the story does not say what is in the bag, or where the cat is put", "Mend it.")
    return belief("ullman", 1, right, real[-1])


def _expert(name: str, title: str, condition_of: Callable[[Record], str] | None = None) -> Format:
    return Format(
        title=title,
        source="github.com/cicl-stanford/procedural-evals-tom",
        licence="MIT",
        needs=f"data/expert_data/{name}.csv",
        records=records,
        stories=partial(
            stories, name=name, condition_of=condition_of or (lambda record: f"{name}/false-belief")
        ),
    )


ULLMAN = _expert("ullman", "variations of two false-belief stories that turn most beliefs true", _varied)
KOSINSKI = _expert("kosinski", "unexpected contents with a wrong label")
DODELL_FEDER = _expert("dodell-feder", "the belief stories of an fMRI localiser, answered yes or no")
