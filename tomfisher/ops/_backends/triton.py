"""The launchers of `tomfisher.kernels`, registered with the operations whose arguments they share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tomfisher.kernels.masked_fill import masked_fill_mean_
from tomfisher.kernels.rope_energy import rope_energy
from tomfisher.kernels.scatter import scatter_
from tomfisher.kernels.sink_mass import sink_mass
from tomfisher.kernels.square_accumulate import square_accumulate_
from tomfisher.kernels.squared_gradient import squared_gradient
from tomfisher.kernels.topk import topk, topk_across
from tomfisher.kernels.weight_sums import weight_sums
from tomfisher.ops.dispatch import register

NAME = "triton"

register("masked_fill_mean_", NAME)(masked_fill_mean_)
register("rope_energy", NAME)(rope_energy)
register("scatter_", NAME)(scatter_)
register("sink_mass", NAME)(sink_mass)
register("square_accumulate_", NAME)(square_accumulate_)
register("squared_gradient_", NAME)(squared_gradient)
register("topk_across", NAME)(topk_across)
register("weight_sums", NAME)(weight_sums)


@register("topk", NAME)
def _topk(
    flats: Sequence[Tensor], counts: Sequence[int], thresholds: None
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor]:
    indices, status = topk(flats, counts)
    return indices, [], [], [], status
