"""`summary_stored`: extremes, histogram and counts of a tensor that stays in its file."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

import tomfisher.ops.reference.summary_stored  # noqa: F401  (registers the definition)
from tomfisher.ops.dispatch import Impl, resolve
from tomfisher.ops.summary import Summary, as_summary, checked_thresholds
from tomfisher.ops.topk_stored import check_first, check_span


def summary_stored(
    path: str | os.PathLike[str],
    offset: int,
    numel: int,
    dtype: torch.dtype,
    thresholds: Sequence[float] = (),
    impl: Impl = "auto",
) -> Summary:
    """Count the entries of a vector in a file by size, exactly.

    Equivalent PyTorch, with the file in memory::

        flat = torch.frombuffer(data, dtype=dtype, count=numel, offset=offset)
        summary(flat, thresholds)

    The C++ implementation reads blocks of 1 MiB on every thread.

    Args:
        path: the file, little-endian.
        offset: of the vector's first byte.
        numel: number of its entries.
        dtype: float16, bfloat16, float32 or float64.
        thresholds: numbers to count the entries above, in any order; not rounded to the dtype.
        impl: "auto", "cpp" or "reference".

    Returns:
        A `Summary` on the CPU.

    Raises:
        FileNotFoundError: no such file.
        TypeError: another dtype.
        ValueError: the vector does not lie within the file, or it or the thresholds hold what is no number.
    """
    check_span(path, offset, numel, dtype)
    bounds = checked_thresholds(thresholds)
    _, run = resolve("summary_stored", impl, torch.device("cpu"))
    extremes, histogram, above, first = run(os.fspath(path), offset, numel, dtype, bounds)
    check_first(path, first)
    return as_summary(extremes, histogram, above)
