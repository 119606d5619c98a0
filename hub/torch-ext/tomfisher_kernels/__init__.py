"""Triton kernels of tomfisher: squared gradients per sample, exact top-k, fills, rotary energies, attention sinks."""

from .masked_fill import masked_fill_mean_
from .rope_energy import rope_energy
from .scatter import scatter_
from .sink_mass import sink_mass
from .square_accumulate import square_accumulate_
from .squared_gradient import squared_gradient
from .topk import topk, topk_across
from .weight_sums import weight_sums

__all__ = [
    "masked_fill_mean_",
    "rope_energy",
    "scatter_",
    "sink_mass",
    "square_accumulate_",
    "squared_gradient",
    "topk",
    "topk_across",
    "weight_sums",
]
