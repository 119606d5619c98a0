"""`square_accumulate_` by Triton."""

from tomfisher.kernels.square_accumulate import square_accumulate_
from tomfisher.ops.dispatch import register

register("square_accumulate_", "triton")(square_accumulate_)
