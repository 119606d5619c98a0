"""`store_masks`: masks from Fisher stores on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tomfisher.masks import SparseMask, difference_masks, rank
from tomfisher.masks.ranking import Scope
from tomfisher.studies.stores import check_pair, open_store


def store_masks(
    task: str | os.PathLike[str],
    control: str | os.PathLike[str] | None,
    kappas: Sequence[float],
    scope: Scope = "tensor",
    compat: str | None = None,
) -> dict[float, SparseMask]:
    """The top entries of one store, without those of another at the same κ, in one reading.

    Args:
        task: the store to select from.
        control: the store whose selection is taken away; None takes nothing away.
        kappas: fractions of the entries, each between 0 and 1.
        scope: what each κ is a share of, see `tomfisher.top_fraction`.
        compat: see there.

    Returns:
        The mask of every κ.

    Raises:
        FileNotFoundError: a store is not there.
        ValueError: a store is damaged, or the two hold different tensors.
    """
    F = open_store(Path(task))
    if control is None:
        ranking = rank(F, max(kappas), scope, compat)
        return {kappa: ranking.mask(kappa) for kappa in kappas}
    G = open_store(Path(control))
    check_pair(F, G)
    return difference_masks(F, G, kappas, scope, compat)
