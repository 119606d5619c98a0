"""Training only the masked entries of a model, and how that compares with random entries and with LoRA."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tomfisher.finetune.comparison import Plan, compare
    from tomfisher.finetune.delta import AppliedDelta, Delta, apply
    from tomfisher.finetune.lora import LoraPlan, finetune_lora, plan_lora
    from tomfisher.finetune.masked import TunedEntries, finetune_masked
    from tomfisher.finetune.results import Comparison, State

_HOMES = {
    "AppliedDelta": "delta",
    "Comparison": "results",
    "Delta": "delta",
    "LoraPlan": "lora",
    "Plan": "comparison",
    "State": "results",
    "TunedEntries": "masked",
    "apply": "delta",
    "compare": "comparison",
    "finetune_lora": "lora",
    "finetune_masked": "masked",
    "plan_lora": "lora",
}
__all__ = [
    "AppliedDelta",
    "Comparison",
    "Delta",
    "LoraPlan",
    "Plan",
    "State",
    "TunedEntries",
    "apply",
    "compare",
    "finetune_lora",
    "finetune_masked",
    "plan_lora",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"tomfisher.finetune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tomfisher.finetune' has no attribute {name!r}")
