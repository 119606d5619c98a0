"""`expected_change`: what a fill would add to every weight of a tensor, before any mask is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from tomfisher.perturbation.fill import Fill, FillLike


def expected_change(weight: Tensor, fill: FillLike = "mean") -> Tensor:
    """δ_i: the value that the fill would write, minus the weight.

    The mean is that of all entries, since the masked ones are not known yet; a mask of a small share moves it little.
    "noise" is random: its δ_i is the root of the expected square, sqrt((m - w_i)² + s²) with mean m and standard
    deviation s of all entries.

    Args:
        weight: any shape, floating point.
        fill: as `tomfisher.perturb` takes it.

    Returns:
        float64, of the weight's shape.

    Raises:
        ValueError: the fill is unknown.
    """
    parsed, w = Fill.parse(fill), weight.detach().double()
    if parsed.kind == "scale":
        return (parsed.value - 1) * w
    if parsed.kind == "number":
        return parsed.value - w
    change = w.mean() - w
    return change if parsed.kind == "mean" else torch.sqrt(change.square() + w.var(correction=0))
