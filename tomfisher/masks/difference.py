"""`difference_masks`: task minus control at several κ, each of the two Fishers read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from tomfisher.masks.ranking import Scope, rank
from tomfisher.masks.sparse_mask import SparseMask
from tomfisher.runtime.torch_state import plain_torch


@plain_torch()
def difference_masks(
    task: Mapping[str, Tensor],
    control: Mapping[str, Tensor],
    kappas: Sequence[float],
    scope: Scope = "tensor",
    compat: str | None = None,
) -> dict[float, SparseMask]:
    """For each κ the entries among the top fraction of `task` that are not among that of `control`.

    Equivalent to `top_fraction(task, kappa) - top_fraction(control, kappa)` for each κ. A Fisher store opened
    from disk is streamed tensor by tensor: memory grows with the largest κ, not with the store.

    Args:
        task: a Fisher diagonal or any mapping from names to tensors.
        control: another with the same names and shapes.
        kappas: fractions of the entries, each in (0, 1).
        scope: over which entries κ is taken: "tensor", "layer" or "model".
        compat: "authors" for the paper's thresholding.

    Returns:
        κ to mask, in the order given.

    Raises:
        TypeError: a tensor has no floating-point dtype.
        ValueError: no κ or one out of range, names or shapes that differ, NaN or infinity.
    """
    if not kappas:
        raise ValueError("kappas must hold at least one fraction, got none.")
    if odd := sorted(set(task) ^ set(control)):
        raise ValueError(f"task and control must hold the same tensors; only one holds {odd[:4]}.")
    rankings = [rank(F, max(kappas), scope, compat) for F in (task, control)]
    if rankings[0].shapes != rankings[1].shapes:
        odd = [name for name, shape in rankings[0].shapes.items() if rankings[1].shapes[name] != shape]
        raise ValueError(f"task and control must hold tensors of the same shapes; these differ: {odd[:4]}.")
    return {kappa: rankings[0].mask(kappa) - rankings[1].mask(kappa) for kappa in kappas}
