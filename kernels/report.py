"""The table of registers, spills and shared memory in README.md: `python -m tomfisher.kernels.report`.

It has a column per chip and Triton version. A run writes those of its own Triton and keeps the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import triton

from .resources import CHIPS, KIB, Chip, all_variants, compile_for, kernel_name, made_for
from .variant import Variant

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- report:begin -->", "<!-- report:end -->"

_Key = tuple[str, ...]  # kernel, dtype, configuration
_Table = dict[_Key, dict[str, str]]  # to the cells by the heads of their columns


def main(arguments: Sequence[str] | None = None) -> int:
    """Write this Triton's columns into README.md, or with `--check` say whether what is there is true.

    `--check` compares numbers only where this version has columns; the list of kernels and configurations always,
    and that no version leaves one out.

    Returns:
        0, or 1 where `--check` finds the table stale.
    """
    parser = argparse.ArgumentParser(prog="python -m tomfisher.kernels.report", description=main.__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if the table is stale"
    )
    parser.add_argument("--fresh", action="store_true", help="drop the columns of other versions")
    options = parser.parse_args(arguments)
    before, text, after = _parts(README.read_text())
    old = _read(text)
    if not options.check:
        new = _merged({} if options.fresh else old, _measured())
        README.write_text(f"{before}{BEGIN}\n{_written(new)}\n{END}{after}")
        return 0
    if _stale(old):
        print(f"The compile report in {README} is stale. Run: make kernel-report", file=sys.stderr)
        return 1
    return 0


def _stale(old: _Table) -> bool:
    mine = [_key(variant) for variant in all_variants()]
    if list(old) != mine or any(len(cells) < len(_columns(old)) for cells in old.values()):
        return True
    known = any(column in _columns(old) for column in map(_column, CHIPS))
    return known and _merged(old, _measured()) != old


def _measured() -> _Table:
    """This Triton's columns: every variant compiled for every chip."""
    return {
        _key(variant): {_column(chip): _cell(variant, chip) for chip in CHIPS} for variant in all_variants()
    }


def _merged(old: _Table, new: _Table) -> _Table:
    """The new rows, with the old cells of other columns."""
    return {key: {**old.get(key, {}), **cells} for key, cells in new.items()}


def _columns(table: _Table) -> list[str]:
    """Heads of columns: chip by chip, the versions of a chip in order."""
    order = [chip.name for chip in CHIPS]
    found = {column for cells in table.values() for column in cells}
    return sorted(found, key=lambda column: (order.index(column.split()[0]), _number(column.split()[1])))


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _written(table: _Table) -> str:
    """The table as Markdown, with a legend."""
    columns = _columns(table)
    lines = [
        "Written by `make kernel-report`; a column per chip and Triton version.",
        "A cell is registers per thread / shared memory per program in KiB, then spills, if any, in bytes (AMD: in",
        "registers). `!` marks more shared memory than the chip has.",
        "",
        "| kernel | dtype | configuration | " + " | ".join(columns) + " |",
        "| --- | --- | --- |" + " --- |" * len(columns),
    ]
    rows = [
        "| " + " | ".join([*key, *(cells.get(column, "") for column in columns)]) + " |"
        for key, cells in table.items()
    ]
    return "\n".join([*lines, *rows])


def _read(text: str) -> _Table:
    """The table that `_written` wrote; cells that are empty are left out."""
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")
    ]
    if not lines:
        return {}
    columns = lines[0][3:]
    return {
        tuple(line[:3]): {column: cell for column, cell in zip(columns, line[3:], strict=True) if cell}
        for line in lines[2:]
    }


def _parts(text: str) -> tuple[str, str, str]:
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    return before, old.strip("\n"), after


def _key(variant: Variant) -> _Key:
    return kernel_name(variant), variant.dtype, variant.label


def _column(chip: Chip) -> str:
    return f"{chip.name} {triton.__version__}"


def _cell(variant: Variant, chip: Chip) -> str:
    if not made_for(variant, chip):
        return "not for it"
    used = compile_for(variant, chip)
    spills = f", {used.spilled} spilled" if used.spilled else ""
    over = "!" if used.shared > chip.shared_limit else ""
    return f"{used.registers} / {used.shared / KIB:.1f}{over}{spills}"


if __name__ == "__main__":
    sys.exit(main())
