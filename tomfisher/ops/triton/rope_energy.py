"""Triton implementation of `rope_energy`."""

from tomfisher.kernels.rope_energy import rope_energy
from tomfisher.ops.dispatch import register

register("rope_energy", "triton")(rope_energy)
