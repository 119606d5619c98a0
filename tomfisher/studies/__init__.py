"""What a user runs: the sweep, several architectures, a grid of fills, ablations and trainings; each yields rows."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tomfisher.studies.config import Config
    from tomfisher.studies.experiment import Experiment
    from tomfisher.studies.presets import PRESETS

_HOMES = {"Config": "config", "Experiment": "experiment", "PRESETS": "presets"}
__all__ = ["PRESETS", "Config", "Experiment"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"tomfisher.studies.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tomfisher.studies' has no attribute {name!r}")
