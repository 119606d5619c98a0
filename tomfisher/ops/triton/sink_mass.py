"""Triton implementation of `sink_mass`."""

from tomfisher.kernels.sink_mass import sink_mass
from tomfisher.ops.dispatch import register

register("sink_mass", "triton")(sink_mass)
