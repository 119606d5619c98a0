"""Exact Fisher diagonals: selection, capture, probe, estimator and store."""

from tomfisher.fisher.diagonal import FisherDiagonal
from tomfisher.fisher.estimator import fisher_diagonal
from tomfisher.fisher.linear_maps import decoder_linear_weights
from tomfisher.fisher.selection import PRESETS, select_parameters

__all__ = ["PRESETS", "FisherDiagonal", "decoder_linear_weights", "fisher_diagonal", "select_parameters"]
