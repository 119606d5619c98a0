"""Definition of `topk_stored`: map the file and select in memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tomfisher.ops.dispatch import register
from tomfisher.ops.reference.topk import first_non_finite, indices_of_largest


@register("topk_stored", "reference")
def topk_stored_reference(
    path: str, offset: int, numel: int, dtype: torch.dtype, k: int
) -> tuple[Tensor, Tensor, int]:
    """The k largest entries of a vector in a file: value descending, then index ascending.

    Args:
        path: the file.
        offset: of the vector's first byte.
        numel: number of its entries.
        dtype: of its entries.
        k: 0 to `numel`.

    Returns:
        `(values, indices, first)`: `[k]` of the dtype, -0.0 as 0.0; `[k]` int64; -1 or the first index that
        holds NaN or infinity, where the others then mean nothing.
    """
    flat = mapped(path, offset, numel, dtype)
    indices = indices_of_largest(flat, k)
    return flat[indices] + 0.0, indices, first_non_finite(flat)


def mapped(path: str, offset: int, numel: int, dtype: torch.dtype) -> Tensor:
    """A vector over the bytes of a file, which are read when they are looked at."""
    if numel == 0:
        return torch.empty(0, dtype=dtype)
    data = np.memmap(path, dtype=np.uint8, mode="c", offset=offset, shape=(numel * dtype.itemsize,))
    return torch.frombuffer(data, dtype=dtype)
