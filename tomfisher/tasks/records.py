"""JSON and JSON Lines files as records that know where they stand, so that errors can point at them."""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomfisher.text_files import StrictDecoder, read_text

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_STRICT = StrictDecoder()


@dataclass(frozen=True)
class Record:
    """One value of a file.

    Args:
        value: the parsed JSON value.
        where: file, line and list entry, for messages.
        number: 1-based count within its list.
    """

    value: Any
    where: str
    number: int

    def refuse(self, reason: str, remedy: str) -> ValueError:
        """Build the error that names the record's place, what is wrong with it and how to mend it."""
        return ValueError(f"{self.where}: {reason}. {remedy}")

    def text(self, key: str) -> str:
        """Return a required non-empty string field, without white space around it."""
        return self.written(key).strip()

    def written(self, key: str) -> str:
        """Return a required non-empty string field as it is written."""
        value = self.value.get(key)
        if value is None:
            fields = ", ".join(sorted(self.value)) or "none"
            raise self.refuse(f"field {key!r} is missing (fields given: {fields})", f"Add {key!r}.")
        if not isinstance(value, str) or not value.strip():
            raise self.refuse(
                f"field {key!r} must be a non-empty text, got {value!r}", "Write a string there."
            )
        return value


def read_text_file(path: str | os.PathLike[str]) -> str:
    """Read a UTF-8 file (a byte order mark is dropped) that is not empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, no UTF-8 text, or holds nothing but white space.
    """
    text = read_text(path)
    if not text.strip():
        raise ValueError(f"{path} is empty. Put at least one text or record in it.")
    return text


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Read a JSON array, a JSON object of arrays, a single JSON object or JSON Lines; blank lines are skipped.

    Args:
        path: the file; its content, not its suffix, decides between JSON and JSON Lines.

    Returns:
        The records in file order, at least one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no UTF-8 text, empty, or no valid JSON (`StrictDecoder`): with file, line and reason.
    """
    source = _Source(str(path), read_text_file(path))
    records = source.records()
    if not records:
        raise ValueError(f"{path} holds no records. Put at least one in it.")
    return records


class _Source:
    """A text with its line numbers."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self.line_ends = [match.start() for match in re.finditer("\n", text)]

    def records(self) -> list[Record]:
        start = self.skip(0)
        if self.text[start] == "[":
            return list(self.array(start))
        try:
            return self.whole(_STRICT.decode(self.text))
        except json.JSONDecodeError as error:
            first_line = self.text[start:].split("\n", 1)[0]
            if Path(self.path).suffix.lower() == ".json" and not _is_json(first_line):
                raise self.syntax(error) from None
            return list(self.lines())

    def whole(self, value: Any) -> list[Record]:
        """Give the entries of an object's lists of objects, or the value itself when it has none."""
        entries = value.items() if isinstance(value, dict) else ()
        lists = [key for key, x in entries if isinstance(x, list) and any(isinstance(e, dict) for e in x)]
        if not lists:
            return [Record(value, f"{self.place(self.skip(0))}, record 1", 1)]
        return [record for key in lists for record in self.array(self.value_start(key), f" of {key!r}")]

    def array(self, start: int, of: str = "") -> Iterator[Record]:
        """Decode the list that begins at `start`, one entry at a time."""
        at, number = self.skip(start + 1), 0
        while self.text[at : at + 1] not in ("]", ""):
            number += 1
            where = f"{self.place(at)}, record {number}{of}"
            try:
                value, end = _STRICT.raw_decode(self.text, at)
            except json.JSONDecodeError as error:
                raise self.syntax(error, f", record {number}{of}") from None
            yield Record(value, where, number)
            at = self.skip(end)
            if self.text[at : at + 1] == ",":
                at = self.skip(at + 1)
            elif self.text[at : at + 1] not in ("]", ""):
                raise ValueError(f"{self.place(at)}: a comma is missing after record {number}{of}. Add it.")
        if at >= len(self.text):
            raise ValueError(f"{self.place(len(self.text) - 1)}: the list is not closed. Add the missing ].")
        after = self.skip(at + 1)
        if not of and after < len(self.text):
            raise ValueError(
                f"{self.place(after)}: there is text after the list's closing bracket. Keep one list per file, or "
                "write JSON Lines with one object per line."
            )

    def lines(self) -> Iterator[Record]:
        filled = [(index, line) for index, line in enumerate(self.text.split("\n"), 1) if line.strip()]
        for number, (index, line) in enumerate(filled, 1):
            where = f"{self.path}, line {index}"
            try:
                yield Record(_STRICT.decode(line), where, number)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{where}, column {error.colno}: not valid JSON ({error.msg}). "
                    "Write one JSON object per line, with double quotes."
                ) from None

    def value_start(self, key: str) -> int:
        """Where the value of a top-level key begins in a valid JSON object."""
        at = self.skip(self.text.index("{") + 1)
        while True:
            name, at = _STRICT.raw_decode(self.text, at)
            at = self.skip(at, " \t\r\n:")
            if name == key:
                return at
            _, at = _STRICT.raw_decode(self.text, at)
            at = self.skip(at, " \t\r\n,")

    def syntax(self, error: json.JSONDecodeError, record: str = "") -> ValueError:
        return ValueError(
            f"{self.place(error.pos)}, column {error.colno}{record}: not valid JSON ({error.msg}). Mend it there."
        )

    def place(self, position: int) -> str:
        return f"{self.path}, line {bisect_left(self.line_ends, position) + 1}"

    def skip(self, at: int, characters: str = " \t\r\n") -> int:
        while at < len(self.text) and self.text[at] in characters:
            at += 1
        return at


def _is_json(text: str) -> bool:
    try:
        _STRICT.decode(text)
    except json.JSONDecodeError:
        return False
    return True
