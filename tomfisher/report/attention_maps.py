"""Whole attention maps of single heads, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tomfisher.report.measurements import as_mapping, numbers
from tomfisher.report.style import SEQUENTIAL, STATES, axes, literal, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATES_SHOWN = ("baseline", "task-control")
_TOKENS = 16
_WAY_OUT = (
    "Ask for the same heads in both states: attention_sinks(model, prompts, heads=[(0, 1)]) of the model as it is "
    '("baseline") and again within `perturb(model, mask)` ("task-control").'
)


@styled
def plot_attention_maps(maps: Mapping[str, Any], prompt: int = 0) -> tuple[Figure, Any]:
    """Attention of each query token (down) on each key token (across), one row of maps per head.

    The colours follow the square root of the attention, so that small weights are seen.

    Args:
        maps: by state ("baseline" and "task-control"), each an `AttentionSinks` that was asked for whole maps (or its
            `to_dict()`); or by head ("LAYER.HEAD") as `analysis.json` has them, `{"baseline": [T, T],
            "task-control": [T, T], "tokens": [T strings]}`.
        prompt: which of the prompts of an `AttentionSinks`.

    Returns:
        Figure and the axes `[heads, 2]`.

    Raises:
        ValueError: no maps, not the same heads in both states, or a state or prompt that is not there.
    """
    if set(maps) & set(STATES):
        maps = _by_head(maps, prompt)
    if not maps:
        raise ValueError(f"There is no attention map to draw. {_WAY_OUT}")
    from matplotlib.colors import PowerNorm

    figure, panels = axes(1.95 * len(maps) + 0.5, len(maps), 2, squeeze=False)
    for row, (head, states) in zip(panels, maps.items(), strict=True):
        for axis, state in zip(row, STATES_SHOWN, strict=True):
            if state not in states:
                raise ValueError(f"Head {head} has no map of the state {state!r}. {_WAY_OUT}")
            values = numbers(states[state])
            image = axis.imshow(
                values, cmap=SEQUENTIAL, norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="none"
            )
            axis.set_title(f"{literal(head)}: {STATES[state].label}")
            axis.grid(False)
            _token_axes(axis, states.get("tokens"), len(values))
        row[0].set_ylabel("query token")
    for axis in panels[-1]:
        axis.set_xlabel("key token")
    figure.set_layout_engine("compressed")
    figure.colorbar(image, ax=panels, label="attention", shrink=0.6, pad=0.02)
    return figure, panels


def _by_head(states: Mapping[str, Any], prompt: int) -> dict[str, dict[str, Any]]:
    """The maps of one prompt by head, of measurements by state."""
    if missing := [state for state in STATES_SHOWN if state not in states]:
        raise ValueError(f"There is no measurement of the state {missing[0]!r}. {_WAY_OUT}")
    heads: dict[str, dict[str, Any]] = {}
    for state in STATES_SHOWN:
        for head, values in as_mapping(states[state]).get("maps", {}).items():
            if not 0 <= prompt < len(values):
                raise ValueError(
                    f"Head {head} has maps of {len(values)} prompts, so there is none of prompt {prompt}. Ask for "
                    "more: attention_sinks(..., map_prompts=...)."
                )
            heads.setdefault(head, {})[state] = values[prompt]
    return heads


def _token_axes(axis: Any, tokens: list[str] | None, length: int) -> None:
    """The tokens themselves where they are few, else their positions."""
    if tokens is not None and length <= _TOKENS:
        words = [literal(word) for word in tokens]
        axis.set_xticks(range(length), words, rotation=90, fontsize=6)
        axis.set_yticks(range(length), words, fontsize=6)
