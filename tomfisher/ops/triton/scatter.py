"""`scatter_` by Triton."""

from tomfisher.kernels.scatter import scatter_
from tomfisher.ops.dispatch import register

register("scatter_", "triton")(scatter_)
