"""Sparse masks: which entries of which tensors, chosen by size, combined as sets, saved as one small file."""

from tomfisher.masks.difference import difference_masks
from tomfisher.masks.ranking import Ranking, rank
from tomfisher.masks.select import top_fraction
from tomfisher.masks.sparse_mask import SparseMask
from tomfisher.masks.summary import summary

__all__ = ["Ranking", "SparseMask", "difference_masks", "rank", "summary", "top_fraction"]
