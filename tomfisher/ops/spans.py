"""Where each tensor lies in a safetensors file, which the library itself does not say, and reading a part of one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tomfisher.ops.vectors import Span

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16,
    "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32,
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64,
}  # fmt: skip


def read_spans(path: str | os.PathLike[str]) -> dict[str, Span]:
    """Read the header of a safetensors file.

    The library checks it against the file first: the tensors fill the rest of the file, one after another; nothing
    overlaps, nothing is missing.

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
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}.") from error
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    spans = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if (dtype := _DTYPES.get(entry["dtype"])) is None:
            raise ValueError(
                f"{path}: {name!r} has the dtype {entry['dtype']}, not one of {', '.join(_DTYPES)}."
            )
        spans[name] = Span(path, 8 + length + entry["data_offsets"][0], tuple(entry["shape"]), dtype)
    return spans


def read_entries(span: Span, start: int, stop: int) -> Tensor:
    """Some entries of a tensor in a file, by a plain read, so that no page of the file counts as the process's.

    Args:
        span: where the tensor lies.
        start: flat index of the first entry.
        stop: flat index behind the last.

    Returns:
        A vector of `stop - start` entries.

    Raises:
        ValueError: the file ends before.
    """
    size = span.dtype.itemsize
    data = np.fromfile(span.path, np.uint8, (stop - start) * size, offset=span.offset + start * size)
    if data.size != (stop - start) * size:
        raise ValueError(f"{span.path} ends before its tensors do: it was cut off after it was opened.")
    return torch.from_numpy(data).view(span.dtype)
