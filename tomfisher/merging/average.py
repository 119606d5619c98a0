"""`fisher_average`: the definition of a merge, entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fisher_average(
    values: Sequence[Tensor],
    fishers: Sequence[Tensor] | None,
    coefficients: Sequence[float],
    floor: float = 0.0,
) -> Tensor:
    """Average weights by how much each model's data depend on them.

    `θ = Σ_m λ_m (F_m + floor) θ_m / Σ_m λ_m (F_m + floor)`; where the denominator is 0, and everywhere without
    Fisher diagonals, `θ = Σ_m λ_m θ_m / Σ_m λ_m`.

    Args:
        values: weights θ_m of each model, of one shape and any floating-point dtypes.
        fishers: F_m of each, averaged over samples, of that shape; None for none.
        coefficients: λ_m of each, positive.
        floor: added to every F.

    Returns:
        float64, of that shape.

    Source:
        Matena and Raffel, Merging Models with Fisher-Weighted Averaging, arXiv 2111.09832, equation 5.
    """
    plain = _weighted(values, [torch.tensor(c, dtype=torch.float64) for c in coefficients])
    if fishers is None:
        return plain
    weights = [c * (F.double() + floor) for c, F in zip(coefficients, fishers, strict=True)]
    reached = sum(weights) != 0
    return torch.where(torch.as_tensor(reached), _weighted(values, weights), plain)


def _weighted(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    total = sum(weights[1:], start=weights[0])
    top = sum(
        (w * v.double() for w, v in zip(weights[1:], values[1:], strict=True)),
        start=weights[0] * values[0].double(),
    )
    return top / total
