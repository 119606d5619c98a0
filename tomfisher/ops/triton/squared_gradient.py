"""Triton implementation of `squared_gradient_`."""

from tomfisher.kernels.squared_gradient import squared_gradient
from tomfisher.ops.dispatch import register

register("squared_gradient_", "triton")(squared_gradient)
