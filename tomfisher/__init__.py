"""tomfisher: exact Fisher diagonals of language models, sparse masks from them, and what breaks without them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tomfisher.version import __version__

if TYPE_CHECKING:
    from tomfisher import evaluate, tasks
    from tomfisher.fisher import FisherDiagonal, fisher_diagonal
    from tomfisher.masks import SparseMask, top_fraction
    from tomfisher.perturbation import perturb
    from tomfisher.sample import Sample
    from tomfisher.studies import Config, Experiment
    from tomfisher.tasks.encode import encode

_HOMES = {
    "Config": "tomfisher.studies",
    "Experiment": "tomfisher.studies",
    "FisherDiagonal": "tomfisher.fisher",
    "Sample": "tomfisher.sample",
    "SparseMask": "tomfisher.masks",
    "encode": "tomfisher.tasks.encode",
    "fisher_diagonal": "tomfisher.fisher",
    "perturb": "tomfisher.perturbation",
    "top_fraction": "tomfisher.masks",
}
_SUBPACKAGES = (
    "analysis",
    "evaluate",
    "finetune",
    "fisher",
    "interventions",
    "masks",
    "merging",
    "models",
    "ops",
    "perturbation",
    "report",
    "results",
    "studies",
    "tasks",
    "testbed",
)

__all__ = [
    "Config",
    "Experiment",
    "FisherDiagonal",
    "Sample",
    "SparseMask",
    "__version__",
    "encode",
    "evaluate",
    "fisher_diagonal",
    "perturb",
    "tasks",
    "top_fraction",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"tomfisher.{name}")
    raise AttributeError(f"module 'tomfisher' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBPACKAGES})
