"""Sparse masks: which entries of which tensors, chosen by size, combined as sets, saved as one small file."""

from tomfisher.masks.entries import summary
from tomfisher.masks.pruning import prune_with_torch, pruning_mask
from tomfisher.masks.ranking import Ranking, rank
from tomfisher.masks.select import difference_masks, top_fraction
from tomfisher.masks.sparse_mask import SparseMask

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
