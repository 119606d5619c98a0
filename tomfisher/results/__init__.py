"""What studies write and read: rows, statistics over clusters, run folders and tables."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tomfisher.results.results import Results
    from tomfisher.results.row import Row
    from tomfisher.results.verdict import Verdict, judge

_HOMES = {"Results": "results", "Row": "row", "Verdict": "verdict", "judge": "verdict"}
__all__ = ["Results", "Row", "Verdict", "judge"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"tomfisher.results.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tomfisher.results' has no attribute {name!r}")
