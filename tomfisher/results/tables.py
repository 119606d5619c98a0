"""Tables of measured states: a selection of rows becomes lines of text, or a table of the report's page.

A line stands for one state, or for several that differ in their seed alone and are shown as least to most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

from tomfisher.results.row import CONTROL_ONLY, TASK_CONTROL, Row


class Style(NamedTuple):
    """How a table is worded.

    Attributes:
        to: between least and most.
        absent: where there is no value.
        thousands: whether large counts are written with commas.
        capitals: whether headers begin with a capital; symbols such as κ and p never do.
        kappa: the header of κ.
        times: between "random" and the number of masks.
        untouched: what the untouched model is called.
        masks: what masks are called, where it is not their name in the rows.
        once: whether least and most are written once where they are equal.
    """

    to: str
    absent: str
    thousands: bool
    capitals: bool
    kappa: str
    times: str
    untouched: str
    masks: Mapping[str, str]
    once: bool = True


TEXT = Style("..", "", False, False, "kappa", "x", "none (baseline)", {})
PAGE = Style(
    " to ",
    "–",
    True,
    True,
    "κ",
    "×",
    "none (untouched)",
    {TASK_CONTROL: "task minus control", CONTROL_ONLY: "control only"},
)


@dataclass(frozen=True)
class Table:
    """A table as it is shown, in a terminal (`text`) or on the page.

    Attributes:
        caption: what it shows, in a sentence.
        columns: their headers; the first column names the rows.
        rows: cells as they are shown.
        words: numbers of the columns that hold words.
        strong: numbers of the rows that the text speaks of.
        title: of a table that is shown on demand only; None shows it at once.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = (0,)
    strong: Sequence[int] = ()
    title: str | None = None

    def text(self) -> str:
        """The table for a terminal, without its caption."""
        return align(self.columns, self.rows, left=self.words)


class Line(NamedTuple):
    """A line of a table.

    Attributes:
        labels: its first cells.
        rows: of one state, or of all that share the line, on any conditions.
        beside: other rows, such as its controls', by name.
    """

    labels: Sequence[str]
    rows: Sequence[Row]
    beside: Mapping[str, Sequence[Row]] = MappingProxyType({})


class Column(NamedTuple):
    """A column of numbers.

    Attributes:
        header: what stands above it.
        value: the number, or the two ends of an interval, of a row; None where there is none.
        form: how a number is written.
        condition: whose rows it shows; None: all that the line has.
        beside: the name of other rows of the line that it shows, instead of the line's own.
        to: between least and most; None is the style's.
        ci95: how the 95 % interval is written behind the value of one row; "" leaves it out.
    """

    header: str
    value: Callable[[Row], float | tuple[float, float] | None]
    form: str | Callable[[float], str] = "{:.3f}"
    condition: str | None = None
    beside: str | None = None
    to: str | None = None
    ci95: str = ""

    def cell(self, line: Line, style: Style) -> str:
        """What a line has in this column."""
        rows = line.rows if self.beside is None else line.beside.get(self.beside, ())
        wanted = [row for row in rows if self.condition in (None, row.condition)]
        values = [self.value(row) for row in wanted]
        ends = [end for v in values if v is not None for end in (v if isinstance(v, tuple) else (v,))]
        shown = span(ends, self.form, style if self.to is None else style._replace(to=self.to))
        return shown + self.ci95.format(*wanted[0].ci95) if len(wanted) == 1 else shown


def table(
    labels: Sequence[str],
    columns: Sequence[Column],
    lines: Sequence[Line],
    style: Style = TEXT,
    caption: str = "",
    words: Sequence[int] = (0,),
    strong: Sequence[int] = (),
    title: str | None = None,
) -> Table:
    """Lay lines out in columns.

    Args:
        labels: headers of the lines' labels.
        columns: those of numbers, after them.
        lines: what is shown.
        style: `TEXT` or `PAGE`.
        caption: see `Table`, as the rest.
        words: see there.
        strong: see there.
        title: see there.
    """
    rows = [[*line.labels, *(column.cell(line, style) for column in columns)] for line in lines]
    header = [*labels, *(column.header for column in columns)]
    if style.capitals:
        header = [name if name[1:2] in ("", " ", ":") else name[0].upper() + name[1:] for name in header]
    return Table(caption, header, rows, words, strong, title)


def stacked(parts: Sequence[Table]) -> Table:
    """The lines of several tables with the same columns, under the first one's headers and caption."""
    return replace(parts[0], rows=[row for part in parts for row in part.rows])


def align(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Columns padded to their widest entry, numbers to the right, the columns in `left` to the left."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def span(values: Sequence[float], form: str | Callable[[float], str], style: Style = TEXT) -> str:
    """Least and most, or the one value that all have."""
    if not values:
        return style.absent
    if isinstance(form, str):
        form = (form if style.thousands else form.replace(",", "")).format
    low, high = form(min(values)), form(max(values))
    one = len(values) == 1 or (low == high and style.once)
    return low if one else f"{low}{style.to}{high}"
