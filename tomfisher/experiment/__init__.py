"""The whole study: Fisher, masks, sweep, controls and verdict, resumable in one run folder."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tomfisher.experiment.config import PRESETS, Config
    from tomfisher.experiment.results import Point, Results
    from tomfisher.experiment.study import Experiment
    from tomfisher.experiment.verdict import Verdict, judge

_HOMES = {
    "PRESETS": "config",
    "Config": "config",
    "Experiment": "study",
    "Point": "results",
    "Results": "results",
    "Verdict": "verdict",
    "judge": "verdict",
}
__all__ = ["PRESETS", "Config", "Experiment", "Point", "Results", "Verdict", "judge"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"tomfisher.experiment.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tomfisher.experiment' has no attribute {name!r}")
