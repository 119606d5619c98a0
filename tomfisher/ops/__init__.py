"""One function per operation: validate, pick an implementation, run it in place or return the result.

Every operation has a plain-PyTorch reference (`tomfisher.ops.reference`) that defines it.
"""

from tomfisher.ops.dispatch import IMPLEMENTATIONS, Impl, resolve
from tomfisher.ops.masked_fill import masked_fill_mean_
from tomfisher.ops.scatter import scatter_
from tomfisher.ops.square_accumulate import square_accumulate_
from tomfisher.ops.squared_gradient import squared_gradient_
from tomfisher.ops.topk import TopK, topk

__all__ = [
    "IMPLEMENTATIONS",
    "Impl",
    "TopK",
    "masked_fill_mean_",
    "resolve",
    "scatter_",
    "square_accumulate_",
    "squared_gradient_",
    "topk",
]
