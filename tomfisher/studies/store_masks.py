"""`store_masks`: masks from Fisher stores on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tomfisher.masks import SparseMask, criteria, difference_masks, rank
from tomfisher.masks.criteria import Known, Scored
from tomfisher.masks.ranking import Scope
from tomfisher.studies.stores import check_pair, open_store


def store_masks(
    task: str | os.PathLike[str],
    control: str | os.PathLike[str] | None,
    kappas: Sequence[float],
    scope: Scope = "tensor",
    compat: str | None = None,
    control_kappa: float | None = None,
    criterion: str | None = None,
    ratio_quantile: float = 0.5,
) -> dict[float, SparseMask]:
    """The top entries of one store, without those of another, in one reading of each.

    Args:
        task: the store to select from.
        control: the store whose selection is taken away; None takes nothing away.
        kappas: fractions of the entries, each between 0 and 1.
        scope: what each κ is a share of, see `tomfisher.top_fraction`.
        compat: see there.
        control_kappa: see `tomfisher.masks.difference_masks`.
        criterion: one that Fisher stores alone give, such as "ratio"; None is the Fisher diagonal.
        ratio_quantile: of that criterion, see `tomfisher.masks.criteria.ratio`.

    Returns:
        The mask of every κ.

    Raises:
        FileNotFoundError: a store is not there.
        ValueError: a store is damaged, the two hold different tensors, or the criterion needs more than they hold.
    """
    score = criteria.get(criterion)
    if not set(score.needs) <= set(criteria.OF_STORES):
        raise ValueError(
            f"The criterion {score.name} needs {' and '.join(score.needs)}, which Fisher stores do not hold. "
            "tomfisher run --criterion measures it; its masks are in RUN/masks."
        )
    if not score.subtracts and (control is None or control_kappa is not None):
        raise ValueError(
            f"The criterion {score.name} divides by the control's values: give --control_store, and no --control_kappa."
        )
    F = open_store(Path(task))
    if control is None:
        ranking = rank(F, max(kappas), scope, compat)
        return {kappa: ranking.mask(kappa) for kappa in kappas}
    G = open_store(Path(control))
    check_pair(F, G)
    if not score.subtracts:
        ratios = Scored(score, tuple(F), lambda name: Known(F[name], G[name], ratio_quantile))
        ranking = rank(ratios, max(kappas), scope, compat)
        return {kappa: ranking.mask(kappa) for kappa in kappas}
    return difference_masks(F, G, kappas, scope, compat, control_kappa)
