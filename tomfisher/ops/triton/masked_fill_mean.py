"""`masked_fill_mean_` by Triton."""

from tomfisher.kernels.masked_fill import masked_fill_mean_
from tomfisher.ops.dispatch import register

register("masked_fill_mean_", "triton")(masked_fill_mean_)
