"""The rotary frequencies of queries and keys, before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tomfisher.report.measurements import as_mapping, grid, numbers
from tomfisher.report.style import DIVERGING, STATES, axes, legend_above, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARTS = {"q": "queries", "k": "keys"}


def mean_norms(spectrum: Any, part: str) -> np.ndarray:
    """Mean norm of every rotary pair of q or k, `[layers, P]`, averaged over the heads of each layer."""
    return grid([numbers(layer[part]["norm"]).mean(0) for layer in as_mapping(spectrum)["layers"]])


def wavelengths(spectrum: Any) -> list[float]:
    """Tokens that each pair takes for one turn, in the first layer."""
    return [2 * math.pi / frequency for frequency in as_mapping(spectrum)["layers"][0]["frequencies"]]


@styled
def plot_spectrum(spectra: Mapping[str, Any], part: str = "q") -> tuple[Figure, Any]:
    """Mean norm of every rotary pair, averaged over all heads and layers, one line per state of the model.

    Args:
        spectra: by state ("baseline", "task-control", "control-only", "random"), each a `RopeSpectrum` or its
            `to_dict()`.
        part: "q" or "k".

    Returns:
        Figure and axes: pairs from the fastest to the slowest; above, their wavelengths in tokens.
    """
    figure, axis = axes(3.2)
    for state, spectrum in spectra.items():
        look = STATES[state]
        values = np.nanmean(mean_norms(spectrum, part), axis=0)
        axis.plot(
            range(len(values)),
            values,
            color=look.color,
            marker=look.marker,
            markersize=3.5,
            linestyle=look.dashes,
            label=look.label,
        )
    axis.set(xlabel="rotary pair, fast to slow", ylabel=f"mean norm of {_PARTS[part]}", ylim=(0, None))
    _wavelength_axis(axis, wavelengths(next(iter(spectra.values()))))
    legend_above(figure, axis)
    return figure, axis


@styled
def plot_spectrum_change(before: Any, after: Any, part: str = "q") -> tuple[Figure, Any]:
    """Relative change of every pair's mean norm, layer by layer: -50 % is half of it gone.

    Args:
        before: a `RopeSpectrum` or its `to_dict()`.
        after: the same of the perturbed model.
        part: "q" or "k".

    Returns:
        Figure and axes: pairs across, layers down.
    """
    change = spectrum_change(before, after, part)
    figure, axis = axes(1.9 + 0.09 * max(len(change), 8))
    reach = float(np.nanmax(np.abs(change))) or 1.0
    image = axis.imshow(
        100 * change,
        cmap=DIVERGING,
        vmin=-100 * reach,
        vmax=100 * reach,
        aspect="auto",
        interpolation="none",
    )
    layer_axis(axis, [layer["layer"] for layer in as_mapping(before)["layers"]])
    axis.set_xlabel("rotary pair, fast to slow")
    axis.grid(False)
    _wavelength_axis(axis, wavelengths(before))
    figure.colorbar(image, ax=axis, label="change, %", pad=0.02)
    return figure, axis


def spectrum_change(before: Any, after: Any, part: str) -> np.ndarray:
    """(after - before) / before of `mean_norms`, `[layers, P]`; zero where nothing was before."""
    first, second = mean_norms(before, part), mean_norms(after, part)
    return np.divide(second - first, first, out=np.zeros_like(first), where=first != 0)


def layer_axis(axis: Any, layers: list[Any]) -> None:
    """Layers down the side of a picture, not more labels than fit."""
    step = math.ceil(len(layers) / 12)
    places = range(0, len(layers), step)
    axis.set_yticks(places, [str(layers[i]) for i in places])
    axis.set_ylabel("layer")


def _wavelength_axis(axis: Any, lengths: list[float]) -> None:
    """A second axis above: tokens per turn of some of the pairs."""
    above = axis.secondary_xaxis("top")
    places = np.unique(np.linspace(0, len(lengths) - 1, min(6, len(lengths))).round().astype(int))
    above.set_xticks(places, [_short(lengths[i]) for i in places])
    above.set_xlabel("wavelength, tokens")
    axis.spines["top"].set_visible(False)


def _short(tokens: float) -> str:
    """A length in few letters: 6.3, 199, 1.1k, 40k."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.2g}{unit}" if tokens < 99.5 * size else f"{tokens / size:.0f}{unit}"
    return f"{tokens:.2g}" if tokens < 10 else f"{tokens:.0f}"
