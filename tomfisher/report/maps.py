"""Whole attention maps of single heads, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tomfisher.report.plainly import numbers
from tomfisher.report.style import SEQUENTIAL, STATES, axes, literal, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATES_SHOWN = ("baseline", "task-control")
_TOKENS = 16


@styled
def plot_attention_maps(maps: Mapping[str, Mapping[str, Any]]) -> tuple[Figure, Any]:
    """Attention of each query token (down) on each key token (across), one row of maps per head.

    The colours follow the square root of the attention, so that small weights are seen.

    Args:
        maps: by head ("LAYER.HEAD"), `{"baseline": [T, T], "task-control": [T, T], "tokens": [T strings]}`.

    Returns:
        Figure and the axes `[heads, 2]`.

    Raises:
        ValueError: no maps.
    """
    if not maps:
        raise ValueError("There is no attention map to draw. Name heads: analyze(..., heads=[(0, 1)]).")
    from matplotlib.colors import PowerNorm

    figure, panels = axes(1.95 * len(maps) + 0.5, len(maps), 2, squeeze=False)
    for row, (head, found) in zip(panels, maps.items(), strict=True):
        for axis, state in zip(row, STATES_SHOWN, strict=True):
            values = numbers(found[state])
            image = axis.imshow(
                values, cmap=SEQUENTIAL, norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="none"
            )
            axis.set_title(f"{literal(head)}: {STATES[state].label}")
            axis.grid(False)
            _token_axes(axis, found.get("tokens"), len(values))
        row[0].set_ylabel("query token")
    for axis in panels[-1]:
        axis.set_xlabel("key token")
    figure.set_layout_engine("compressed")
    figure.colorbar(image, ax=panels, label="attention", shrink=0.6, pad=0.02)
    return figure, panels


def _token_axes(axis: Any, tokens: list[str] | None, length: int) -> None:
    """The tokens themselves where they are few, else their positions."""
    if tokens is not None and length <= _TOKENS:
        words = [literal(word) for word in tokens]
        axis.set_xticks(range(length), words, rotation=90, fontsize=6)
        axis.set_yticks(range(length), words, fontsize=6)
