"""`topk_summary_stored`: the k largest entries and a summary of a tensor that stays in its file."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

import tomfisher.ops.reference.topk_summary_stored  # noqa: F401  (registers the definition)
from tomfisher.ops.dispatch import Impl, resolve
from tomfisher.ops.summary import as_summary, checked_thresholds
from tomfisher.ops.topk import as_topk
from tomfisher.ops.topk_stored import check_first, check_span
from tomfisher.ops.topk_summary import TopKSummary
from tomfisher.ops.vectors import check_count


def topk_summary_stored(
    path: str | os.PathLike[str],
    offset: int,
    numel: int,
    dtype: torch.dtype,
    k: int,
    thresholds: Sequence[float] = (),
    impl: Impl = "auto",
) -> TopKSummary:
    """Select the k largest entries of a vector in a file and count all of them by size, exactly.

    Equivalent PyTorch::

        at = path, offset, numel, dtype
        TopKSummary(topk_stored(*at, k), summary_stored(*at, thresholds))

    The C++ implementation reads blocks of 1 MiB on every thread, and the file once wherever `topk_stored` does.

    Args:
        path: the file, little-endian.
        offset: of the vector's first byte.
        numel: number of its entries.
        dtype: float16, bfloat16, float32 or float64.
        k: how many, 0 to `numel`.
        thresholds: numbers to count the entries above, in any order; not rounded to the dtype.
        impl: "auto", "cpp" or "reference".

    Returns:
        A `TopKSummary` on the CPU.

    Raises:
        FileNotFoundError: no such file.
        TypeError: another dtype, or k is no integer.
        ValueError: k is out of range, the vector does not lie within the file, or it or the thresholds hold what is
            no number.
    """
    check_span(path, offset, numel, dtype)
    check_count(k, numel, os.fspath(path))
    bounds = checked_thresholds(thresholds)
    _, run = resolve("topk_summary_stored", impl, torch.device("cpu"))
    values, indices, *parts, first = run(os.fspath(path), offset, numel, dtype, k, bounds)
    check_first(path, first)
    return TopKSummary(as_topk(values, indices), as_summary(*parts))
