"""Training only the masked entries of a model, or LoRA of the same size; `tomfisher.studies.finetune` compares them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tomfisher.finetune.delta import AppliedDelta, Delta, apply
    from tomfisher.finetune.lora import LoraPlan, finetune_lora, plan_lora
    from tomfisher.finetune.masked import TunedEntries, finetune_masked

_HOMES = {
    "AppliedDelta": "delta",
    "Delta": "delta",
    "LoraPlan": "lora",
    "TunedEntries": "masked",
    "apply": "delta",
    "finetune_lora": "lora",
    "finetune_masked": "masked",
    "plan_lora": "lora",
}
__all__ = [
    "AppliedDelta",
    "Delta",
    "LoraPlan",
    "TunedEntries",
    "apply",
    "finetune_lora",
    "finetune_masked",
    "plan_lora",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"tomfisher.finetune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tomfisher.finetune' has no attribute {name!r}")
