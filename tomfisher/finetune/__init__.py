"""Training only the masked entries of a model, or LoRA of the same size; a penalty for forgetting (EWC)."""

from tomfisher.finetune.delta import AppliedDelta, Delta, apply
from tomfisher.finetune.ewc import EWC
from tomfisher.finetune.lora import LoraPlan, finetune_lora, plan_lora
from tomfisher.finetune.masked import TunedEntries, finetune_masked

__all__ = [
    "EWC",
    "AppliedDelta",
    "Delta",
    "LoraPlan",
    "TunedEntries",
    "apply",
    "finetune_lora",
    "finetune_masked",
    "plan_lora",
]
