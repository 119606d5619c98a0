"""Figures, tables and one self-contained HTML page from a run folder."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tomfisher.report.ablations import plot_interventions
    from tomfisher.report.architectures import plot_architectures
    from tomfisher.report.attention_maps import plot_attention_maps
    from tomfisher.report.data import RunData, load
    from tomfisher.report.fisher_values import plot_fisher_values
    from tomfisher.report.frontier import plot_frontier
    from tomfisher.report.mask_profile import plot_frequency_rows, plot_mask_map
    from tomfisher.report.page import write
    from tomfisher.report.sinks import plot_sinks
    from tomfisher.report.spectrum import plot_spectrum, plot_spectrum_change
    from tomfisher.report.sweep import plot_accuracy, plot_perplexity

_HOMES = {
    "RunData": "data",
    "load": "data",
    "plot_accuracy": "sweep",
    "plot_architectures": "architectures",
    "plot_attention_maps": "attention_maps",
    "plot_fisher_values": "fisher_values",
    "plot_frequency_rows": "mask_profile",
    "plot_frontier": "frontier",
    "plot_interventions": "ablations",
    "plot_mask_map": "mask_profile",
    "plot_perplexity": "sweep",
    "plot_sinks": "sinks",
    "plot_spectrum": "spectrum",
    "plot_spectrum_change": "spectrum",
    "write": "page",
}
__all__ = [
    "RunData",
    "load",
    "plot_accuracy",
    "plot_architectures",
    "plot_attention_maps",
    "plot_fisher_values",
    "plot_frequency_rows",
    "plot_frontier",
    "plot_interventions",
    "plot_mask_map",
    "plot_perplexity",
    "plot_sinks",
    "plot_spectrum",
    "plot_spectrum_change",
    "write",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"tomfisher.report.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tomfisher.report' has no attribute {name!r}")
