"""Where each tensor lies in a safetensors file, read from its header without trusting it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, TypeGuard

import torch

from tomfisher.ops import Span

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_MAX_DIMENSIONS = 64  # torch's
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16,
    "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32,
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64,
}  # fmt: skip


def read_spans(path: str | os.PathLike[str]) -> dict[str, Span]:
    """Read the header of a safetensors file and check every number in it against the file.

    The tensors have to fill the rest of the file, one after another: nothing overlaps, nothing is missing.

    Args:
        path: the file.

    Returns:
        Name to span, in the order of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is shorter than its header says, or the header is no valid safetensors header.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little") if size >= 8 else -1
        if not 0 <= length <= min(_MAX_HEADER, size - 8):
            raise _damaged(path, f"its header would have {length} bytes, the file has {size}")
        header = _parsed(path, file.read(length))
    start = 8 + length
    header.pop("__metadata__", None)
    spans = {name: _span(path, name, entry, start, size) for name, entry in header.items()}
    ordered = dict(sorted(spans.items(), key=lambda item: (item[1].offset, item[1].numel)))
    end = start
    for name, span in ordered.items():
        if span.offset != end:
            raise _damaged(path, f"{name!r} begins at byte {span.offset}, where byte {end} comes next")
        end += span.numel * span.dtype.itemsize
    if end != size:
        raise _damaged(path, f"its tensors end at byte {end} of {size}")
    return ordered


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a name is given twice")
        return dict(pairs)

    try:
        header = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is no valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no JSON object")
    return header


def _span(path: Path, name: str, entry: Any, start: int, size: int) -> Span:
    said: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (said.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _damaged(path, f"{name!r} has the dtype {dtype!r}, not one of {', '.join(_DTYPES)}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise _damaged(path, f"{name!r} has the shape {_short(shape)} and the offsets {_short(offsets)}")
    begin, end = offsets
    if not begin <= end <= size - start:
        raise _damaged(path, f"{name!r} lies at bytes {begin} to {end} of {size - start}")
    needed = math.prod(shape) * _DTYPES[dtype].itemsize
    if end - begin != needed:
        raise _damaged(
            path, f"{name!r} takes {end - begin} bytes, its shape {shape} and {dtype} need {needed}"
        )
    return Span(path, start + begin, tuple(shape), _DTYPES[dtype])


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of a few integers that fit into 63 bits and are not negative."""
    few = isinstance(value, list) and len(value) <= _MAX_DIMENSIONS
    return few and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _short(value: Any) -> str:
    """For a message; numbers of thousands of digits cannot even be printed."""
    try:
        return f"{value!r:.80}"
    except ValueError:
        return "of numbers beyond all bounds"


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is damaged or no safetensors file: {what}.")
