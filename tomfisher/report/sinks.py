"""Attention to the first token, layer by layer, in every state of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tomfisher.report.measurements import as_mapping, numbers
from tomfisher.report.style import SOFT, STATES, axes, legend_above, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {
    "first_mass": "attention on the first token",
    "angle": "angle of q to the first key, °",
    "cosine": "cosine of q and the first key",
    "entropy": "entropy of attention, nats",
    "key_norm": "norm of the first key",
}
_ORTHOGONAL = {"angle": 90.0, "cosine": 0.0}


def per_layer(sinks: Any, measure: str) -> np.ndarray:
    """One measure of `AttentionSinks`, `[layers]`, averaged over the heads of each layer."""
    return np.array([numbers(layer[measure]).mean() for layer in as_mapping(sinks)["layers"]])


@styled
def plot_sinks(sinks: Mapping[str, Any], measure: str = "first_mass") -> tuple[Figure, Any]:
    """One measure of the attention sink over the layers, mean over heads, one line per state of the model.

    Args:
        sinks: by state ("baseline", "task-control", "control-only", "random"), each an `AttentionSinks` or its
            `to_dict()`.
        measure: "first_mass", "angle" (degrees; 90 is orthogonal), "cosine", "entropy" or "key_norm".

    Returns:
        Figure and axes.

    Raises:
        ValueError: another measure.
    """
    if measure not in MEASURES:
        raise ValueError(f"There is no measure {measure!r} to draw. Measures: {', '.join(MEASURES)}.")
    figure, axis = axes(3.2)
    if measure in _ORTHOGONAL:
        axis.axhline(
            _ORTHOGONAL[measure], color=SOFT, linewidth=1.0, linestyle=(0, (1, 2)), label="orthogonal"
        )
    for state, measured in sinks.items():
        look = STATES[state]
        layers = [layer["layer"] for layer in as_mapping(measured)["layers"]]
        axis.plot(
            layers,
            per_layer(measured, measure),
            color=look.color,
            marker=look.marker,
            linestyle=look.dashes,
            label=look.label,
        )
    axis.set(xlabel="layer", ylabel=MEASURES[measure])
    if measure in ("first_mass", "entropy", "key_norm"):
        axis.set_ylim(0, None)
    axis.xaxis.get_major_locator().set_params(integer=True)
    legend_above(figure, axis)
    return figure, axis
