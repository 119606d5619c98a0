"""One look for all figures, and how a figure becomes a picture that follows the page's colours."""

from __future__ import annotations

import functools
import io
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tomfisher.results.row import Row

WIDTH = 4.6
PNG_DPI = 160


class Tone(NamedTuple):
    """A colour on light paper and its counterpart on dark."""

    light: str
    dark: str


TONES = {
    "paper": Tone("#ffffff", "#14181d"),
    "ink": Tone("#1f2328", "#e6e9ee"),
    "soft": Tone("#59616b", "#a5adb8"),
    "grid": Tone("#d8dce2", "#39414b"),
    "task": Tone("#c24e00", "#ff9d5c"),
    "control": Tone("#0068a8", "#6cbcf0"),
    "random": Tone("#7a7f87", "#9aa2ad"),
    "other": Tone("#00805e", "#45d0a5"),
}
INK, SOFT, GRID, PAPER = (TONES[name].light for name in ("ink", "soft", "grid", "paper"))
TASK, CONTROL, RANDOM = (TONES[name].light for name in ("task", "control", "random"))
SEQUENTIAL, DIVERGING = "cividis", "PuOr"


class Look(NamedTuple):
    """How one state of a model is drawn: never by colour alone."""

    label: str
    color: str
    marker: str
    dashes: str


STATES = {
    "baseline": Look("untouched", INK, "", "-"),
    "task-control": Look("task minus control", TASK, "o", "-"),
    "control-only": Look("control only", CONTROL, "s", "--"),
    "random": Look("random", RANDOM, "^", ":"),
}

_RC: Any = {
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.labelsize": 10.0,
    "axes.titlesize": 10.0,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "axes.unicode_minus": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "tomfisher",
}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_COLOURED = ("style", "fill", "stroke")

P = ParamSpec("P")
R = TypeVar("R")


def styled(plot: Callable[P, R]) -> Callable[P, R]:
    """Run a plot function with the look of the house; matplotlib's settings are as before afterwards."""

    @functools.wraps(plot)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context(_RC):
            return plot(*args, **kwargs)

    return run


def axes(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure 4.6 inches wide that belongs to no window, and its axes (one, or an array of them).

    Args:
        height: inches.
        rows: of axes.
        columns: of axes.
        options: for `Figure.subplots`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def error_bars(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """How far the 95 % intervals of accuracies reach below and above them."""
    below = [max(0.0, row.accuracy - row.ci95_low) for row in rows]
    above = [max(0.0, row.ci95_high - row.accuracy) for row in rows]
    return below, above


def literal(text: str) -> str:
    """A text from data as matplotlib shall show it: a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def legend_above(figure: Figure, axis: Any, columns: int = 2) -> None:
    """Put the legend of one axes above the figure, where it hides nothing."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)


@styled
def to_svg(figure: Figure) -> str:
    """The figure as an SVG file: text as text, the same bytes for the same figure."""
    return _saved(figure, "svg", {"Date": None, "Creator": None}).decode("utf-8")


@styled
def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file on white."""
    return _saved(figure, "png", {"Software": None}, dpi=PNG_DPI)


def to_inline(svg: str, prefix: str, label: str) -> str:
    """A figure as an `<svg>` element for a page.

    Its colours are the page's custom properties (`--ink`, `--task`, ...), so it follows light and dark; its ids
    begin with a prefix, so that figures of one page do not refer to each other.

    Args:
        svg: what `to_svg` gave for a figure in the colours of `TONES`.
        prefix: unique on the page.
        label: what the figure shows, for those who do not see it.

    Returns:
        Markup without XML declaration, doctype, metadata or reference to anything outside.
    """
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}title")]:
            parent.remove(child)
    known: set[str] = set()
    for element in root.iter():
        _adopt(element, prefix)
        if element.attrib.get("id") in known:  # matplotlib names equal images alike
            del element.attrib["id"]
        known.add(element.attrib.get("id", ""))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ET.tostring(root, encoding="unicode")


def _adopt(element: ET.Element, prefix: str) -> None:
    """Give one element the page's colours and unique ids."""
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{prefix}-{value}")
        elif key in ("href", f"{{{_XLINK}}}href") and value.startswith("#"):
            element.set(key, f"#{prefix}-{value[1:]}")
        elif value.startswith("url(#"):
            element.set(key, value.replace("url(#", f"url(#{prefix}-"))
        elif key in _COLOURED:
            for name, tone in TONES.items():
                value = value.replace(tone.light, f"var(--{name})")
            element.set(key, value)
    if element.tag == f"{{{_SVG}}}style" and element.text:
        element.text = ""


def _saved(figure: Figure, format: str, metadata: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, metadata=metadata, **options)
    return buffer.getvalue()
