"""`top_fraction` and `difference_masks`: the largest entries, and those of one Fisher that are not of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from tomfisher.masks.ranking import Scope, rank
from tomfisher.masks.sparse_mask import SparseMask
from tomfisher.runtime.torch_state import plain_torch


def top_fraction(
    F: Mapping[str, Tensor], kappa: float, scope: Scope = "tensor", compat: str | None = None
) -> SparseMask:
    """Choose the k = floor(κ·numel) largest entries of F that are above zero.

    Ties: larger value first, then the earlier tensor (where several share one k), then the lower flat index.
    Zeros: an entry of exactly 0 is never chosen, since no sample reached that weight and its place in the order
    would be that of its index alone. A tensor with fewer than k entries above zero gives these, and one warning says
    which tensors do. Equivalent PyTorch, per tensor::

        k = floor(kappa * values.numel())
        order = values.flatten().sort(descending=True, stable=True)
        index = order.indices[:k][order.values[:k] > 0].sort().values

    For several κ use `tomfisher.masks.rank` once and `Ranking.mask(kappa)` for each. κ is read as the decimal
    that it prints as, so that 0.29 of 100 entries is 29.

    Args:
        F: any mapping from names to tensors of float16, bfloat16, float32 or float64 values, such as a Fisher
            diagonal; read one tensor at a time.
        kappa: fraction of the entries, in (0, 1). A warning names tensors too small to get any.
        scope: "tensor" (the paper), "layer" or "model": over which entries κ is taken.
        compat: "authors" for the paper's code, which keeps the entries strictly above the int(numel·κ)-th
            largest value: one entry fewer, or more if there are ties; per tensor only.

    Returns:
        The mask, with κ, scope and the provenance of F.

    Raises:
        TypeError: a tensor has no floating-point dtype.
        ValueError: κ is not in (0, 1), scope or compat is unknown, F is empty, or a tensor holds NaN or
            infinity.

    Source:
        arXiv 2504.04238, section on the mask.
    """
    return rank(F, kappa, scope, compat).mask(kappa)


@plain_torch()
def difference_masks(
    task: Mapping[str, Tensor],
    control: Mapping[str, Tensor],
    kappas: Sequence[float],
    scope: Scope = "tensor",
    compat: str | None = None,
    control_kappa: float | None = None,
) -> dict[float, SparseMask]:
    """For each κ the entries among the top fraction of `task` that are not among that of `control`.

    Equivalent to `top_fraction(task, kappa) - top_fraction(control, control_kappa or kappa)` for each κ. A Fisher
    store opened from disk is streamed tensor by tensor: memory grows with the largest κ, not with the store.

    Args:
        task: a Fisher diagonal or any mapping from names to tensors.
        control: another with the same names and shapes.
        kappas: fractions of the entries, each in (0, 1).
        scope: over which entries κ is taken: "tensor", "layer" or "model".
        compat: "authors" for the paper's thresholding.
        control_kappa: fraction of `control` that every mask leaves out, in (0, 1); None is each mask's own κ, the
            paper's rule. The larger it is, the more specific to the task is what is left.

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
    left_out = {kappa: kappa if control_kappa is None else control_kappa for kappa in kappas}
    rankings = [
        rank(F, max(largest), scope, compat)
        for F, largest in ((task, left_out.keys()), (control, left_out.values()))
    ]
    if rankings[0].shapes != rankings[1].shapes:
        odd = [name for name, shape in rankings[0].shapes.items() if rankings[1].shapes[name] != shape]
        raise ValueError(f"task and control must hold tensors of the same shapes; these differ: {odd[:4]}.")
    return {kappa: rankings[0].mask(kappa) - rankings[1].mask(left_out[kappa]) for kappa in kappas}
