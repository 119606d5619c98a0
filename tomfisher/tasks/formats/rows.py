"""CSV files as records that know where they stand."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from typing import Any

from tomfisher.tasks.records import Record, read_text_file


def read_cells(path: str | os.PathLike[str], delimiter: str, columns: tuple[int, ...]) -> list[Record]:
    """Read a CSV file without a header; the value of a record is the list of its cells.

    Args:
        path: the file.
        delimiter: between cells.
        columns: how many cells a row may have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or a row has another number of cells: with file, line and reason.
    """
    rows = csv.reader(io.StringIO(read_text_file(path), newline=""), delimiter=delimiter)
    records = []
    for number, (line, row) in enumerate(_numbered(path, rows), 1):
        record = Record([cell.strip() for cell in row], f"{path}, line {line}, record {number}", number)
        if len(row) not in columns:
            wanted = " or ".join(map(str, columns))
            raise record.refuse(
                f"a row has {wanted} cells with {delimiter!r} between them, got {len(row)}", "Mend the row."
            )
        if not all(record.value):
            raise record.refuse(f"cell {record.value.index('') + 1} is empty", "Fill it.")
        records.append(record)
    return records


def read_table(path: str | os.PathLike[str]) -> list[Record]:
    """Read a CSV file whose first line names the columns; the value of a record is a mapping from them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, has no row, or a row has another number of cells: with file, line and reason.
    """
    rows = _numbered(path, csv.reader(io.StringIO(read_text_file(path), newline="")))
    _, names = next(rows)
    records = []
    for number, (line, row) in enumerate(rows, 1):
        record = Record(dict(zip(names, row, strict=False)), f"{path}, line {line}, record {number}", number)
        if len(row) != len(names):
            raise record.refuse(
                f"the header names {len(names)} columns, got {len(row)} cells", "Mend the row."
            )
        records.append(record)
    if not records:
        raise ValueError(f"{path} holds a header and no row. Put at least one record in it.")
    return records


def _numbered(path: str | os.PathLike[str], rows: Any) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not empty, with the line on which it ends."""
    try:
        for row in rows:
            if row:
                yield rows.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: no valid CSV ({error}). Mend it there.") from None
