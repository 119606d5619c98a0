"""Overwriting a few weights of a model in place, and putting them back to the bit."""

from tomfisher.perturbation.fill import Fill
from tomfisher.perturbation.layerwise import LayerwisePerturbation, State
from tomfisher.perturbation.prepare import perturb
from tomfisher.perturbation.session import Perturbation
from tomfisher.perturbation.sums import WeightSums

__all__ = ["Fill", "LayerwisePerturbation", "Perturbation", "State", "WeightSums", "perturb"]
