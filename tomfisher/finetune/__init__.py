"""Training only the masked entries of a model, or LoRA of the same size; `tomfisher.studies.finetune` compares them."""

from tomfisher.finetune.delta import AppliedDelta, Delta, apply
from tomfisher.finetune.lora import LoraPlan, finetune_lora, plan_lora
from tomfisher.finetune.masked import TunedEntries, finetune_masked

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
