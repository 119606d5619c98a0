"""`weight_sums` by Triton."""

from tomfisher.kernels.weight_sums import weight_sums
from tomfisher.ops.dispatch import register

register("weight_sums", "triton")(weight_sums)
