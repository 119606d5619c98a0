"""`topk_stored` by the C++ extension."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)
from tomfisher.ops.dispatch import register


@register("topk_stored", "cpp")
def topk_stored_cpp(
    path: str, offset: int, numel: int, dtype: torch.dtype, k: int
) -> tuple[Tensor, Tensor, int]:
    """As `tomfisher.ops.reference.topk_stored` defines, without holding more than a block per thread.

    Raises:
        OSError: the file cannot be read.
    """
    with reading():
        values, indices, status = torch.ops.tomfisher_cpp.topk_file(
            path, offset, numel, dtype, k, torch.get_num_threads()
        )
    return values, indices, int(status)


@contextmanager
def reading() -> Iterator[None]:
    """Turn the extension's report that a file cannot be read into an OSError."""
    try:
        yield
    except RuntimeError as error:
        if "Cannot read" not in str(error):
            raise
        raise OSError(str(error)) from error


@torch.library.register_fake("tomfisher_cpp::topk_file")
def _(
    path: str, offset: int, count: int, dtype: torch.dtype, k: int, threads: int
) -> tuple[Tensor, Tensor, Tensor]:
    values, indices = torch.empty(k, dtype=dtype), torch.empty(k, dtype=torch.int64)
    return values, indices, torch.empty(1, dtype=torch.int64)
