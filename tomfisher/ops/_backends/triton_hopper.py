"""`squared_gradient_` with specialised warps for Hopper, by name until a GPU has verified it; the rest is Triton."""

from __future__ import annotations

from tomfisher.kernels.squared_gradient_hopper import squared_gradient
from tomfisher.ops._backends import triton
from tomfisher.ops.dispatch import implementations, register

HOPPER = "triton-hopper"

for op, function in implementations(triton.NAME).items():
    register(op, HOPPER)(function)
register("squared_gradient_", HOPPER)(squared_gradient)
