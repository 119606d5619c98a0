"""The ablation study: parts of a mask and interventions, each measured like a point of the study, with controls."""

from tomfisher.ablation.ablate import ablate
from tomfisher.ablation.results import AblationPoint, Ablations
from tomfisher.ablation.run import DEFAULT, ablate_run

__all__ = ["DEFAULT", "AblationPoint", "Ablations", "ablate", "ablate_run"]
