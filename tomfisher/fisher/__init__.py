"""Exact Fisher diagonals: selection, capture, probe, estimator and store."""

from tomfisher.fisher.diagonal import FisherDiagonal
from tomfisher.fisher.estimator import fisher_diagonal
from tomfisher.fisher.selection import PRESETS, select_parameters

__all__ = ["PRESETS", "FisherDiagonal", "fisher_diagonal", "select_parameters"]
