"""Hidden states between a model's layers, in memory or in a file."""

from __future__ import annotations

import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tomfisher.runtime.machine import free_memory


class _Place(NamedTuple):
    """Where a tensor lies in the file."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.shape.numel() * self.dtype.itemsize


class Boundaries:
    """Tensors by key, kept in memory or in a file.

    What is forgotten makes room for tensors of as many bytes, so that the file does not grow with the layers.

    Args:
        folder: where the file is made; None keeps the tensors in memory.
        name: of the file, which stays until `remove`; None for one without a name that is gone with the process.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, name: str | None = None) -> None:
        self._tensors: dict[Hashable, Tensor] = {}
        self._places: dict[Hashable, _Place] = {}
        self._keys: Counter[int] = Counter()  # by offset, how many keys lead there
        self._unused: dict[int, list[int]] = defaultdict(list)  # by bytes, offsets
        self._path = None if folder is None or name is None else Path(folder) / name
        self._file = _opened(folder, self._path)
        self._end = 0
        self.bytes_written = 0

    def __setitem__(self, key: Hashable, tensor: Tensor) -> None:
        if self._file is None:
            self._tensors[key] = tensor.detach()
            return
        self.discard(key)
        data = bytes_of(tensor)
        unused = self._unused[len(data)]
        offset = unused.pop() if unused else self._end
        self._end = max(self._end, offset + len(data))
        self._places[key] = _Place(offset, tensor.shape, tensor.dtype)
        self._keys[offset] += 1
        _write_all(self._file.fileno(), data, offset)
        self.bytes_written += len(data)

    def __getitem__(self, key: Hashable) -> Tensor:
        if self._file is None:
            return self._tensors[key]
        offset, shape, dtype = self._places[key]
        tensor = torch.empty(shape, dtype=dtype)
        _read_all(self._file.fileno(), bytes_of(tensor), offset)
        return tensor

    @property
    def is_kept(self) -> bool:
        """Whether the tensors are in a file that outlives the process."""
        return self._path is not None

    def places(self) -> dict[Hashable, tuple[int, list[int], str]]:
        """Of every tensor in the file its offset, shape and dtype, to be found again by `adopt`."""
        return {
            k: (p.offset, list(p.shape), str(p.dtype).removeprefix("torch.")) for k, p in self._places.items()
        }

    def adopt(self, places: Mapping[Hashable, tuple[int, list[int], str]]) -> None:
        """Take up what another process left in the file, as its `places` said, instead of what is known so far."""
        self._places = {
            k: _Place(o, torch.Size(shape), getattr(torch, dtype)) for k, (o, shape, dtype) in places.items()
        }
        self._keys = Counter(place.offset for place in self._places.values())
        self._unused.clear()
        self._end = max((place.offset + place.nbytes for place in self._places.values()), default=0)

    def sync(self) -> None:
        """Wait until the file is on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def remove(self) -> None:
        """`close`, and delete the file."""
        self.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    @property
    def room(self) -> int | None:
        """Bytes that are free where the tensors are kept; None where that is not known."""
        if self._file is None:
            return free_memory()
        disk = os.fstatvfs(self._file.fileno())
        return disk.f_bavail * disk.f_frsize

    @property
    def file_bytes(self) -> int:
        """How large the file is."""
        return self._end

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tensors or key in self._places

    def share(self, key: Hashable, other: Hashable) -> None:
        """Let another key lead to the same tensor, which is kept once."""
        if self._file is None:
            self._tensors[other] = self._tensors[key]
            return
        self.discard(other)
        self._places[other] = self._places[key]
        self._keys[self._places[key].offset] += 1

    def discard(self, key: Hashable) -> None:
        """Forget a tensor, unless another key leads there."""
        self._tensors.pop(key, None)
        place = self._places.pop(key, None)
        if place is None:
            return
        self._keys[place.offset] -= 1
        if not self._keys[place.offset] and place.nbytes:
            self._unused[place.nbytes].append(place.offset)

    def clear(self) -> None:
        """Forget them all; in a file that is kept their bytes stay, for what another process may find by its places."""
        for key in [*self._tensors, *([] if self.is_kept else self._places)]:
            self.discard(key)

    def close(self) -> None:
        """Forget them all, and the file."""
        self._tensors.clear()
        self._places.clear()
        if self._file is not None:
            self._file.close()


def _opened(folder: str | os.PathLike[str] | None, path: Path | None) -> Any:
    if folder is None:
        return None
    if path is None:
        return tempfile.TemporaryFile(dir=Path(folder))
    return path.open("r+b" if path.exists() else "w+b")


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
