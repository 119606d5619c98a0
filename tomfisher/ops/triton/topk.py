"""Triton implementation of `topk`."""

from tomfisher.kernels.topk import topk
from tomfisher.ops.dispatch import register

register("topk", "triton")(topk)
