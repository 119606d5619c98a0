"""OpenToM (Xu et al., 2024): narratives in which one person moves a thing of another, who may see it or not.

The folder holds `meta_data.json` with a narrative for each id, and files of questions for each id; of two versions of
a file the one that ends in `_new` is read. Rows of the `datasets` id have the same fields, with one question each.

- where the thing is (fine: the place; coarse: whether it is where it was), by the narrator: memory and reality;
- the same in the eyes of the mover or the observer: a belief, false where the answer is not what is the case;
- how full a container is, how accessible the thing: false to an observer who has not seen the move. What one thinks
  that the other thinks is not called true or false there;
- the attitude of the observer.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tomfisher.tasks.formats.base import Asked, Format, belief, level_of
from tomfisher.tasks.records import Record, read_records
from tomfisher.tasks.story import Story
from tomfisher.text_files import read_json

NAME = "opentom"
PLOTS = "meta_data.json"
QUESTIONS = (
    *("location_fg_fo", "location_fg_so", "location_cg_fo", "location_cg_so"),
    *("multihop_fo", "multihop_so", "attitude"),
)
CHANGES = {
    "fullness": ("more full", "less full", "equally full"),
    "accessibility": ("more accessible", "less accessible", "equally accessible"),
}
ATTITUDES = ("positive", "neutral", "negative")
_WHO = re.compile(r"From (.+?)'s perspective")


def records(path: str | os.PathLike[str]) -> list[Record]:
    """Read a folder of questions and plots, or a file of rows that hold both.

    Returns:
        Records with the fields of a plot and `question`, a mapping with question, answer and type.

    Raises:
        FileNotFoundError: there is no such file or folder, or no file of plots or of questions in it.
        ValueError: a file is malformed, or asks about a plot that is not there.
    """
    folder = Path(path)
    if not folder.is_dir():
        return read_records(path)
    if not (folder / PLOTS).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {PLOTS}. Give the folder opentom_data as it is published."
        )
    plots = read_json(folder / PLOTS)
    found = [record for file in _files(folder) for record in _of_file(file, plots)]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no questions ({', '.join(QUESTIONS)}). Put at least one of these files there."
        )
    return found


def _files(folder: Path) -> Iterator[Path]:
    for name in QUESTIONS:
        versions = (folder / f"{name}_new.json", folder / f"{name}.json")
        yield from [file for file in versions if file.is_file()][:1]


def _of_file(file: Path, plots: Any) -> Iterator[Record]:
    asked = read_json(file)
    if not isinstance(asked, dict) or not isinstance(plots, dict):
        raise ValueError(
            f"{file}: questions and plots are objects that name them by id. Give the published files."
        )
    number = 0
    for key, questions in asked.items():
        if key not in plots:
            raise ValueError(
                f"{file}, record {key!r}: {PLOTS} holds no such plot. Give files of one version."
            )
        for question in questions:
            number += 1
            yield Record({**plots[key], "question": question}, f"{file}, record {key!r}", number)


def stories(records: Sequence[Record], part: str) -> list[Story]:
    """Make a story of each question; those on one plot are one scene.

    Raises:
        ValueError: a field is missing or malformed, or the question is none of OpenToM's.
    """
    asked = Asked(NAME, part)
    for record in records:
        qa = record.value.get("question")
        if not isinstance(qa, dict):
            raise record.refuse(f"field 'question' must be an object, got {qa!r}", "Mend the record.")
        qa = Record(qa, record.where, record.number)
        plot = Record(_plot(record), record.where, record.number)
        choices, condition, order = _sort(qa, plot, record.value.get("observed"))
        asked.add(
            *(record, record.text("narrative"), qa.text("question"), choices, qa.text("answer")),
            *(condition, order, record.value.get("plot")),
        )
    return asked.stories


def _plot(record: Record) -> dict[str, Any]:
    """The field `plot_info`, which some rows hold as a text."""
    plot = record.value.get("plot_info")
    if isinstance(plot, str):
        try:
            plot = ast.literal_eval(plot)
        except (ValueError, SyntaxError):
            plot = None
    if not isinstance(plot, dict):
        raise record.refuse("field 'plot_info' must be an object", "Mend the record.")
    return plot


def _sort(qa: Record, plot: Record, observed: Any) -> tuple[tuple[str, ...], str, int]:
    """Choices, condition and order of a question."""
    kind, question, answer = qa.text("type"), qa.text("question"), qa.text("answer")
    order = 2 if kind.endswith("-so") else 1
    level = level_of(order)
    who = _WHO.match(question)
    if kind == "attitude":
        return ATTITUDES, f"{NAME}/attitude", 1
    if kind.startswith("multihop"):
        what = "fullness" if "fullness" in question else "accessibility"
        if order == 2:
            return CHANGES[what], f"{NAME}/{level}{what}", 2
        if not isinstance(observed, bool):
            raise qa.refuse(f"field 'observed' must be true or false, got {observed!r}", "Mend the record.")
        seen = observed or who is None or who[1] != plot.text("observer")
        return CHANGES[what], f"{NAME}/{what}/{'true' if seen else 'false'}-belief", 1
    if not kind.startswith("location"):
        raise qa.refuse(f"field 'type' is none of OpenToM's: {kind!r}", "Mend the record.")
    if "initial location" in question:
        return ("Yes", "No"), belief(f"{NAME}/coarse", order, answer, "No"), order
    first, last = plot.text("original_place"), plot.text("move_to_place")
    if who and who[1] == "narrator":
        past = "in the beginning" in question
        # the narrator may spell the place otherwise than the plot
        return (answer, last if past else first), f"{NAME}/{'memory' if past else 'reality'}", 0
    return (first, last), belief(NAME, order, answer, last), order


FORMAT = Format(
    title="a thing moved by one, seen or not by another: places, fullness, accessibility, attitudes",
    source="github.com/seacowx/OpenToM",
    licence="CC BY-NC 4.0",
    needs="the folder data/opentom_data",
    records=records,
    stories=stories,
    hub=True,
)
