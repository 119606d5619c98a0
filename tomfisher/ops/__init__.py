"""One file an operation: arguments checked, an implementation chosen and run, and the plain-PyTorch definition.

Faster implementations are registered in `tomfisher.ops._backends`.
"""

from tomfisher.ops.dispatch import IMPLEMENTATIONS, Impl, resolve
from tomfisher.ops.masked_fill import masked_fill_mean_
from tomfisher.ops.rope_energy import RopeEnergy, rope_energy
from tomfisher.ops.scatter import scatter_
from tomfisher.ops.sink_mass import SinkMass, sink_mass
from tomfisher.ops.square_accumulate import square_accumulate_
from tomfisher.ops.squared_gradient import Precision, squared_gradient_
from tomfisher.ops.summary import Summary, summary
from tomfisher.ops.topk import TopK, TopKAcross, TopKSummary, topk, topk_across, topk_summary
from tomfisher.ops.vectors import Span
from tomfisher.ops.weight_sums import weight_sums

__all__ = [
    "IMPLEMENTATIONS",
    "Impl",
    "Precision",
    "RopeEnergy",
    "SinkMass",
    "Span",
    "Summary",
    "TopK",
    "TopKAcross",
    "TopKSummary",
    "masked_fill_mean_",
    "resolve",
    "rope_energy",
    "scatter_",
    "sink_mass",
    "square_accumulate_",
    "squared_gradient_",
    "summary",
    "topk",
    "topk_across",
    "topk_summary",
    "weight_sums",
]
