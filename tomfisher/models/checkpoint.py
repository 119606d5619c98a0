"""The safetensors files of a model: where each tensor lies, and reading one without keeping the rest."""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tomfisher.models.loading_report import first_of
from tomfisher.ops import Span
from tomfisher.ops.spans import read_spans

_COLUMNS = 1021  # a prime: rows of a weight that change places change columns
_FACTORS = np.random.default_rng(0).integers(2**62, size=_COLUMNS, dtype=np.int64) * 2 + 1
_LARGEST_READ = 2**30


class Checkpoint:
    """Tensors by their stored names, read by plain `read` calls, so that no page of a file counts as the process's.

    Args:
        files: safetensors files; a name that several hold is taken from the last, as transformers does.
        index: stored name to file name, of the checkpoint's index; None where it has none.

    Raises:
        ValueError: files are missing or damaged, or lack a tensor that the index names.
    """

    def __init__(
        self, files: Sequence[str | os.PathLike[str]], index: Mapping[str, str] | None = None
    ) -> None:
        self.files = [Path(file) for file in files]
        if missing := [file.name for file in self.files if not file.is_file()]:
            raise ValueError(f"{len(missing)} of {len(self.files)} files are missing, {first_of(missing)}.")
        self._states = {file: _state(file.stat()) for file in self.files}
        self.spans: dict[str, Span] = {}
        for file in self.files:
            self.spans |= read_spans(file)
        if absent := sorted((index or {}).keys() - self.spans.keys()):
            raise ValueError(
                f"The index names {len(absent)} tensors that its files do not hold, {first_of(absent)}."
            )
        self._headers = {file: _header(file) for file in self.files}
        self._sums: dict[str, int] = {}
        self._lock = threading.Lock()
        self.bytes_read = sum(len(header) for header in self._headers.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(size for _, size, _ in self._states.values())

    def read(self, name: str, into: Tensor | None = None) -> Tensor:
        """Read one tensor.

        Args:
            name: its stored name.
            into: a contiguous tensor on the CPU of the same dtype and number of entries; None makes one.

        Returns:
            `into`, or a new tensor.

        Raises:
            ValueError: the file is gone, or is not what it was when it was opened or read before.
        """
        span = self.spans[name]
        path = Path(span.path)
        target = torch.empty(span.shape, dtype=span.dtype) if into is None else into
        data = _bytes_of(target)
        try:
            with path.open("rb", buffering=0) as file:
                self._check_state(path, os.fstat(file.fileno()))
                file.seek(span.offset)
                _fill(file, memoryview(data), path)
        except OSError as error:
            raise ValueError(f"{path} cannot be read any more: {error.strerror or error}.") from error
        self._count(name, data)
        return target

    def facts(self) -> list[dict[str, Any]]:
        """Name, size in bytes and SHA-256 of the header of each file."""
        return [
            {
                "name": file.name,
                "bytes": self._states[file][1],
                "header_sha256": hashlib.sha256(self._headers[file]).hexdigest(),
            }
            for file in self.files
        ]

    def content(self, names: Collection[str]) -> str | None:
        """SHA-256 of the names and 64-bit check sums of these tensors; None while one of them is unread."""
        if any(name not in self._sums for name in names):
            return None
        return hashlib.sha256("".join(f"{n}:{self._sums[n]:x};" for n in sorted(names)).encode()).hexdigest()

    def _count(self, name: str, data: np.ndarray) -> None:
        total = _checksum(data)
        with self._lock:
            self.bytes_read += data.nbytes
            before = self._sums.setdefault(name, total)
        if before != total:
            raise ValueError(
                f"{self.spans[name].path}: {name} holds other numbers than when it was read before. Nothing may write "
                "to a model's files during a run. Start again."
            )

    def _check_state(self, file: Path, now: os.stat_result) -> None:
        if _state(now) != self._states[file]:
            raise ValueError(
                f"{file} was altered or replaced after it was opened. Nothing may write to a model's files during a "
                "run. Start again."
            )


def _state(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _header(file: Path) -> bytes:
    with file.open("rb") as handle:
        length = handle.read(8)
        return length + handle.read(int.from_bytes(length, "little"))


def _bytes_of(tensor: Tensor) -> Any:
    """The bytes of a contiguous tensor, valid while it lives; `Tensor.numpy` would forbid to free its storage later."""
    memory: Any = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
    return np.frombuffer(memory, np.uint8)


def _fill(file: Any, view: memoryview, path: Path) -> None:
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + _LARGEST_READ])
        if not count:
            raise ValueError(f"{path} ends before its tensors do: it was cut off after it was opened.")
        done += count


def _checksum(data: np.ndarray) -> int:
    """64 bits that depend on every byte and, but for moves by multiples of 1021 words, on its place.

    Numpy's sum runs in the calling thread alone, so that a thread that reads ahead takes no core from the products.
    """
    words = data[: data.size // 8 * 8].view(np.int64)
    whole = words.size // _COLUMNS * _COLUMNS
    columns = words[:whole].reshape(-1, _COLUMNS).sum(axis=0, dtype=np.int64)
    tail = words[whole:]
    columns[: tail.size] += tail
    last = int.from_bytes(data[words.size * 8 :].tobytes(), "little")
    with np.errstate(over="ignore"):
        return (int((columns * _FACTORS).sum()) + last * 0x9E3779B97F4A7C15) % 2**64
