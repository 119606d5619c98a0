"""Hidden states between a model's layers, in memory or in a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class _Place(NamedTuple):
    """Where a tensor lies in the file."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype


class Boundaries:
    """Tensors by key, kept in memory, or in a file without a name that is gone with the process.

    A tensor that takes the place of one of as many bytes is written over it, so that the file does not grow.

    Args:
        folder: where the file is made; None keeps the tensors in memory.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._tensors: dict[Hashable, Tensor] = {}
        self._places: dict[Hashable, _Place] = {}
        self._file = None if folder is None else tempfile.TemporaryFile(dir=Path(folder))  # noqa: SIM115
        self._end = 0
        self.bytes_written = 0

    def __setitem__(self, key: Hashable, tensor: Tensor) -> None:
        if self._file is None:
            self._tensors[key] = tensor.detach()
            return
        data = bytes_of(tensor)
        before = self._places.get(key)
        if before is None or before.shape.numel() * before.dtype.itemsize != len(data):
            before = _Place(self._end, tensor.shape, tensor.dtype)
            self._end += len(data)
        self._places[key] = before._replace(shape=tensor.shape, dtype=tensor.dtype)
        _write_all(self._file.fileno(), data, before.offset)
        self.bytes_written += len(data)

    def __getitem__(self, key: Hashable) -> Tensor:
        if self._file is None:
            return self._tensors[key]
        offset, shape, dtype = self._places[key]
        tensor = torch.empty(shape, dtype=dtype)
        _read_all(self._file.fileno(), bytes_of(tensor), offset)
        return tensor

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tensors or key in self._places

    def discard(self, key: Hashable) -> None:
        """Forget a tensor; in a file its bytes stay until the end."""
        self._tensors.pop(key, None)
        self._places.pop(key, None)

    def close(self) -> None:
        """Forget them all, and the file."""
        self._tensors.clear()
        self._places.clear()
        if self._file is not None:
            self._file.close()


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; of a contiguous one on the CPU its own, so that they can be filled."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _read_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.preadv(file, [data], offset)
        if not count:
            raise OSError(f"The file of hidden states ends {len(data)} bytes early.")
        data, offset = data[count:], offset + count
