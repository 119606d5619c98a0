"""Where a mask's entries sit: layer by module, and over the rotary frequencies of W_Q and W_K."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tomfisher.report.measurements import as_mapping, numbers
from tomfisher.report.spectrum import layer_axis
from tomfisher.report.style import CONTROL, SEQUENTIAL, TASK, axes, legend_above, literal, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARTS = (("q", "W_Q", TASK, -0.2), ("k", "W_K", CONTROL, 0.2))
_SHARP = 24


def density(profile: Any) -> tuple[list[Any], list[str], np.ndarray]:
    """Share of each part's weights that is masked.

    Args:
        profile: a `MaskProfile` or its `to_dict()`.

    Returns:
        Layers, kinds of weights, and the shares `[layers, kinds]` (NaN where a layer has no such weight).
    """
    parts = [part for part in as_mapping(profile)["parts"] if part["layer"] is not None]
    layers = sorted({part["layer"] for part in parts})
    kinds = list(dict.fromkeys(part["kind"] for part in parts))
    masked, weights = np.zeros((2, len(layers), len(kinds)))
    for part in parts:
        place = layers.index(part["layer"]), kinds.index(part["kind"])
        masked[place] += part["masked"]
        weights[place] += part["weights"]
    shares = np.full(masked.shape, np.nan)
    np.divide(masked, weights, out=shares, where=weights > 0)
    return layers, kinds, shares


@styled
def plot_mask_map(profile: Any) -> tuple[Figure, Any]:
    """The masked share of every kind of weight (across) in every layer (down), in percent.

    Args:
        profile: a `MaskProfile` or its `to_dict()`.

    Returns:
        Figure and axes.

    Raises:
        ValueError: the mask has nothing inside the layers.
    """
    layers, kinds, shares = density(profile)
    if not layers:
        raise ValueError("The mask names no weight inside a layer, so there is no map of layers to draw.")
    figure, axis = axes(1.7 + 0.12 * max(len(layers), 7))
    image = axis.imshow(100 * shares, cmap=SEQUENTIAL, vmin=0, aspect="auto", interpolation="none")
    layer_axis(axis, layers)
    axis.set_xticks(range(len(kinds)), [literal(_short(kind)) for kind in kinds], rotation=35, ha="right")
    axis.grid(False)
    figure.colorbar(image, ax=axis, label="masked weights, %", pad=0.02)
    return figure, axis


def pair_counts(profile: Any, kind: str) -> np.ndarray:
    """Masked entries in the rows of each rotary pair, `[P]`, summed over layers and heads; empty without pairs."""
    counts = [
        numbers(part["pairs"]).sum(0)
        for part in as_mapping(profile)["parts"]
        if part["kind"] == kind and part["pairs"] is not None
    ]
    return _summed(counts)


def dominant_counts(profile: Any, kind: str) -> np.ndarray:
    """Of how many heads, over all layers, each rotary pair is dominant, `[P]`; empty where it was not tested."""
    pairs = len(pair_counts(profile, kind))
    tests = (as_mapping(profile).get("enrichment") or {"heads": []})["heads"]
    chosen = [pair for test in tests if test["part"] == kind for pair in test["pairs"] or ()]
    return np.bincount(np.array(chosen, dtype=np.int64), minlength=pairs) if chosen else np.zeros(0)


@styled
def plot_frequency_rows(profile: Any) -> tuple[Figure, Any]:
    """Masked entries in the rows of W_Q and W_K over the rotary pairs, and below which pairs are dominant.

    Args:
        profile: a `MaskProfile` or its `to_dict()`.

    Returns:
        Figure and two axes: masked entries (the line is their mean: the same in every pair), and the number of heads
        whose pair of largest mean norm this is.

    Raises:
        ValueError: no query or key weight of the mask rotates.
    """
    counts = {kind: pair_counts(profile, kind) for kind, *_ in _PARTS}
    if not any(len(values) for values in counts.values()):
        raise ValueError(
            "The mask names no rotated query or key weight, so there are no frequencies to draw."
        )
    figure, (above, below) = axes(4.0, 2, sharex=True, height_ratios=(2, 1))
    for kind, name, color, shift in _PARTS:
        values = counts[kind]
        if not len(values):
            continue
        places = np.arange(len(values)) + shift
        above.bar(places, values, width=0.4, color=color, label=name)
        above.axhline(
            values.mean(), color=color, linewidth=1.0, linestyle=(0, (3, 2)), label=f"{name}, evenly spread"
        )
        heads = dominant_counts(profile, kind)
        below.bar(places[: len(heads)], heads, width=0.4, color=color)
    above.set_ylabel("masked entries")
    below.set(ylabel="heads it is\ndominant in", xlabel="rotary pair, fast to slow")
    below.set_xlim(-0.7, max(map(len, counts.values())) - 0.3)
    below.xaxis.get_major_locator().set_params(integer=True)
    for axis in (above, below):
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.grid(False, axis="x")
    legend_above(figure, above)
    return figure, np.array([above, below])


def _summed(rows: Sequence[np.ndarray]) -> np.ndarray:
    total = np.zeros(max(map(len, rows), default=0))
    for row in rows:
        total[: len(row)] += row
    return total


def _short(kind: str) -> str:
    """A kind of weight in few letters: "mlp.gate_proj" is "gate"."""
    name = kind.rpartition(".")[2].removesuffix("_proj")
    return name if len(name) <= _SHARP else f"{name[: _SHARP - 1]}…"
