"""Items by experts, as Gandhi et al. (2023) publish them: those of Ullman, of Kosinski and of Dodell-Feder et al.

A row (`;` between cells, no header) is story, question, right answer, and one or two wrong ones. Rows with the same
question vary one scene.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import partial

from tomfisher.files import sha256_of_text
from tomfisher.tasks.formats.base import Asked, Format, belief
from tomfisher.tasks.formats.rows import read_cells
from tomfisher.tasks.records import Record
from tomfisher.tasks.story import Story

UNDECIDED = "she has no guess", "he has no guess"
# what each published item asks, by the hash of its story and question, in the file's order
DODELL_FEDER_ITEMS = {
    "9ed5619df95e": "false-belief",  # Pam's tulips
    "727ab6275abd": "reality",  # Susie sees the driveway
    "7d491006770a": "false-belief",  # Sarah's shoes
    "16f77e5088ba": "reality",  # Sally and Greg find the cabin
    "cef448ad230b": "false-belief",  # Jeff's shirt
    "e76951f2c8df": "false-belief",  # Larry's paper
    "81eced506e9a": "true-belief",  # Jill's drink, as the file answers it
    "ac7b31c1299a": "false-belief",  # Amy's car
    "fd32e57bde48": "knowledge/true-belief",  # John has seen his keys
    "0ca255b70414": "reality",  # the campers find the cooler
}
_PUT = re.compile(r"(?:filled with|bag with|puts it) ((?:(?:in|on) the )?\w+)")


def records(path: str | os.PathLike[str]) -> list[Record]:
    """Read the rows; the value of a record is the list of its cells."""
    return read_cells(path, ";", (4, 5))


def stories(
    records: Sequence[Record], part: str, name: str, sort: Callable[[Record], tuple[str, int]]
) -> list[Story]:
    """Make a story of each row.

    Args:
        records: as `records` reads them.
        part: of the data set.
        name: of the format.
        sort: gives condition and order of a row.
    """
    asked = Asked(name, part)
    for record in records:
        story, question, right, *wrong = record.value
        condition, order = sort(record)
        asked.add(record, story, question, [right, *wrong], right, condition, order, scene=question)
    return asked.stories


def _varied(record: Record) -> tuple[str, int]:
    """Ullman's variations: what is in the bag, or where the cat was put last, and whether it is believed."""
    story, _, *choices = record.value
    right = choices[0]
    if right in UNDECIDED:
        return "ullman/no-belief", 1
    real = [place for place in _PUT.findall(story) if place in choices]
    if not real:
        raise record.refuse("the story does not say what is in the bag, or where the cat is put", "Mend it.")
    return belief("ullman", 1, right, real[-1]), 1


def _yes_or_no(record: Record) -> tuple[str, int]:
    """Dodell-Feder's items, whose answers do not show what is asked; any other item is a belief, true or false."""
    story, question, *_ = record.value
    kind = DODELL_FEDER_ITEMS.get(sha256_of_text(story, question)[:12], "belief")
    return f"dodell-feder/{kind}", 0 if kind == "reality" else 1


def _false_belief(name: str) -> Callable[[Record], tuple[str, int]]:
    return lambda record: (f"{name}/false-belief", 1)


def _expert(name: str, title: str, sort: Callable[[Record], tuple[str, int]]) -> Format:
    return Format(
        title=title,
        source="github.com/cicl-stanford/procedural-evals-tom",
        licence="MIT",
        needs=f"data/expert_data/{name}.csv",
        records=records,
        stories=partial(stories, name=name, sort=sort),
    )


ULLMAN = _expert("ullman", "variations of two false-belief stories that turn most beliefs true", _varied)
KOSINSKI = _expert("kosinski", "unexpected contents with a wrong label", _false_belief("kosinski"))
DODELL_FEDER = _expert(
    "dodell-feder", "the belief stories of an fMRI localiser, answered yes or no", _yes_or_no
)
