"""`topk_stored`: the exact k largest entries of a tensor that stays in its file."""

from __future__ import annotations

import os

import torch

import tomfisher.ops.reference.topk_stored  # noqa: F401  (registers the definition)
from tomfisher.ops.checks import DTYPES
from tomfisher.ops.dispatch import Impl, resolve
from tomfisher.ops.topk import TopK, as_topk
from tomfisher.ops.vectors import check_count


def topk_stored(
    path: str | os.PathLike[str], offset: int, numel: int, dtype: torch.dtype, k: int, impl: Impl = "auto"
) -> TopK:
    """Select the k largest entries of a vector in a file, larger value first, then lower index.

    Equivalent PyTorch, with the file in memory::

        flat = torch.frombuffer(data, dtype=dtype, count=numel, offset=offset)
        topk(flat, k)

    except that -0.0 comes back as 0.0. The C++ implementation reads blocks of 1 MiB on every thread, so that
    memory grows with k and not with the file.

    Args:
        path: the file, little-endian.
        offset: of the vector's first byte.
        numel: number of its entries.
        dtype: float16, bfloat16, float32 or float64.
        k: how many, 0 to `numel`.
        impl: "auto", "cpp" or "reference".

    Returns:
        A `TopK` on the CPU.

    Raises:
        FileNotFoundError: no such file.
        TypeError: another dtype, or k is no integer.
        ValueError: k is out of range, the vector does not lie within the file, or it holds NaN or infinity.
    """
    check_span(path, offset, numel, dtype)
    check_count(k, numel, os.fspath(path))
    _, run = resolve("topk_stored", impl, torch.device("cpu"))
    values, indices, first = run(os.fspath(path), offset, numel, dtype, k)
    check_first(path, first)
    return as_topk(values, indices)


def check_span(path: str | os.PathLike[str], offset: int, numel: int, dtype: torch.dtype) -> None:
    """Refuse a vector whose dtype has no order here or that does not lie within its file.

    Raises:
        FileNotFoundError: no such file.
        TypeError: another dtype than `DTYPES`.
        ValueError: the vector does not lie within the file.
    """
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}.")
    size = os.stat(path).st_size
    if offset < 0 or numel < 0 or offset + numel * dtype.itemsize > size:
        raise ValueError(
            f"{numel} entries of {dtype} from byte {offset} do not lie within {os.fspath(path)} ({size} bytes)."
        )


def check_first(path: str | os.PathLike[str], first: int) -> None:
    """Refuse a file in which an implementation found NaN or infinity, at index `first` unless that is -1."""
    if first >= 0:
        raise ValueError(
            f"{os.fspath(path)} must hold finite values (they are put in an order), got NaN or infinity at flat "
            f"index {first}."
        )
