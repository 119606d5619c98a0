"""Data sets of others by name: `FORMAT:SOURCE`, with a file, a folder or a `datasets` id as source."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from tomfisher.tasks.formats import bigtom, expert, exploretom, fantom, hitom, opentom, socialiqa, tomi
from tomfisher.tasks.formats.base import Format
from tomfisher.tasks.hub_rows import hub_rows
from tomfisher.tasks.records import Record
from tomfisher.tasks.story import Story

MAX_ROWS = 100_000
FORMATS: dict[str, Format] = {
    "tomi": tomi.FORMAT,
    "bigtom": bigtom.FORMAT,
    "fantom": fantom.FORMAT,
    "opentom": opentom.FORMAT,
    "hitom": hitom.FORMAT,
    "exploretom": exploretom.FORMAT,
    "socialiqa": socialiqa.FORMAT,
    "ullman": expert.ULLMAN,
    "kosinski": expert.KOSINSKI,
    "dodell-feder": expert.DODELL_FEDER,
}


def format_of(label: str) -> str | None:
    """The name of the format that `FORMAT:SOURCE` begins with; None when it begins with none."""
    name, colon, source = label.partition(":")
    return name if colon and source and name in FORMATS else None


def read_published(name: str, source: str | os.PathLike[str]) -> list[Story]:
    """Read every question of a published data set that has choices.

    Args:
        name: of `FORMATS`.
        source: the file or folder as it is published, or a `datasets` id "name:config:split" (config may be empty)
            where the format has rows.

    Returns:
        Stories with unique ids, in file order. Questions on one story are one scene, in intervals and in the cut into
        halves.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a `datasets` id without the package.
        OSError: the data set cannot be had.
        ValueError: a record is malformed: with file, record and reason.
    """
    kind = FORMATS[name]
    label = os.fspath(source)
    if label.count(":") == 2 and not Path(label).exists():
        return kind.stories(_rows(name, label), label.rpartition(":")[2].replace("/", "-"))
    records = kind.records(label)
    for record in records:
        if not isinstance(record.value, dict | list):
            raise record.refuse(
                f"expected an object, got {str(record.value)[:40]!r}",
                f"A record of {name} is one: {kind.source}.",
            )
    return kind.stories(records, Path(label).resolve().stem)


def _rows(name: str, label: str) -> list[Record]:
    if not FORMATS[name].hub:
        raise ValueError(
            f"{label!r} is a datasets id, but {name} is read from its file alone. Give {FORMATS[name].needs}, "
            f"from {FORMATS[name].source}."
        )
    rows = hub_rows(label, MAX_ROWS)
    if len(rows) > MAX_ROWS:
        rows.pop()
        warnings.warn(f"{label}: only the first {MAX_ROWS:,} rows are read.", UserWarning, stacklevel=4)
    if not rows:
        raise ValueError(f"{label!r} has no rows. Name another split.")
    return [Record(row, f"{label}, row {number}", number) for number, row in enumerate(rows, 1)]
