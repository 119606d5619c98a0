"""Triton implementation of `topk_across`."""

from tomfisher.kernels.topk import topk_across
from tomfisher.ops.dispatch import register

register("topk_across", "triton")(topk_across)
