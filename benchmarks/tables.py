"""Records as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """One column of a table: where in a contender's row its number is, and how it is shown.

    Attributes:
        title: heading.
        key: path in the row, such as "seconds.median".
        unit: "s" picks ms or s; "GiB" and "MiB" take bytes; otherwise a format such as ".2f".
    """

    title: str
    key: str
    unit: str = ".2f"


TIME = (
    Column("median", "seconds.median", "s"),
    Column("q20", "seconds.q20", "s"),
    Column("q80", "seconds.q80", "s"),
)
SPEED = Column("x baseline", "speed.median")
FLOOR = Column("x floor", "times_floor.median")


def render(cases: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """One block per case: its name, a line per contender, and a line per absent one with the reason.

    Args:
        cases: of a record's `results["cases"]`: `{"name", "contenders", "absent"}`, maybe `"baseline"`, `"notes"`.
        columns: what to show of each contender, left out where no row has it; else a missing number is "-".

    Returns:
        Lines of text.
    """
    width = max((len(name) for case in cases for name in (*case["contenders"], *case["absent"])), default=8)
    rows = [row for case in cases for row in case["contenders"].values()]
    columns = [c for c in columns if any(lookup(row, c.key) is not None for row in rows)]
    blocks = []
    for case in cases:
        heading = case["name"] + (f"   (baseline: {case['baseline']})" if case.get("baseline") else "")
        lines = [heading, " " * (width + 2) + "".join(f"{column.title:>11}" for column in columns)]
        for name, row in case["contenders"].items():
            cells = "".join(f"{shown(lookup(row, c.key), c.unit):>11}" for c in columns)
            lines.append(f"  {name:{width}}{cells}")
        lines += [f"  {name:{width}}  not run: {why}" for name, why in case["absent"].items()]
        lines += [f"  {note}" for note in case.get("notes", ())]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def lookup(row: Mapping[str, Any], key: str) -> Any:
    """The number at a dotted path, or None."""
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def shown(value: float | None, unit: str) -> str:
    """A number in a cell."""
    if value is None:
        return "-"
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3f} ms"
    if unit in ("GiB", "MiB"):
        return f"{value / 2 ** {'GiB': 30, 'MiB': 20}[unit]:.2f} {unit}"
    return format(value, unit)
