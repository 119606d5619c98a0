"""`summary`: how large the entries of every tensor are, before a κ is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from tomfisher.masks.entries import entries_of, stored
from tomfisher.ops import Summary
from tomfisher.progress import progress_bar
from tomfisher.runtime.torch_state import plain_torch


@plain_torch()
def summary(F: Mapping[str, Tensor], thresholds: Sequence[float] = ()) -> dict[str, Summary]:
    """Extremes, a histogram over powers of two, and the numbers of entries above thresholds, per tensor.

    Exact, in one pass over each tensor; of a Fisher store opened from disk only a block is held at a time.
    Histograms of tensors of one dtype have the same edges, so those of a layer or of the model are sums.

    Args:
        F: any mapping from names to tensors of float16, bfloat16, float32 or float64 values.
        thresholds: numbers to count the entries above.

    Returns:
        A `tomfisher.ops.Summary` for every name, in the order of F.

    Raises:
        TypeError: a tensor has no floating-point dtype.
        ValueError: a tensor holds NaN or infinity, or a threshold is NaN.
    """
    names = progress_bar(list(F), desc="Summing up", unit="tensor", enabled=stored(F))
    return {name: entries_of(F, name).summary(thresholds) for name in names}
