"""Sparse masks: which entries of which tensors, chosen by size, combined as sets, saved as one small file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tomfisher.masks.entries import summary
    from tomfisher.masks.pruning import prune_with_torch, pruning_mask
    from tomfisher.masks.ranking import Ranking, rank
    from tomfisher.masks.select import difference_masks, top_fraction
    from tomfisher.masks.sparse_mask import SparseMask

# loaded when asked for: the names of the criteria are in every command's help, which needs no torch
_HOMES = {
    "Ranking": "ranking",
    "SparseMask": "sparse_mask",
    "difference_masks": "select",
    "prune_with_torch": "pruning",
    "pruning_mask": "pruning",
    "rank": "ranking",
    "summary": "entries",
    "top_fraction": "select",
}
__all__ = [
    "Ranking",
    "SparseMask",
    "difference_masks",
    "prune_with_torch",
    "pruning_mask",
    "rank",
    "summary",
    "top_fraction",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"tomfisher.masks.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tomfisher.masks' has no attribute {name!r}")
