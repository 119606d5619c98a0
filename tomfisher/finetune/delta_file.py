"""The delta file: one safetensors file of positions, old and new values, with a JSON header and a checksum."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tomfisher.files import atomic_path, write_tensors
from tomfisher.text_files import StrictDecoder

FORMAT = "tomfisher-delta"
VERSION = 1
PARTS = ("index", "old", "new")


def write(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]],
    indices: Mapping[str, Tensor],
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
) -> None:
    """Write positions and values to `path`, all or nothing."""
    tensors = {
        f"{part}:{name}": value.detach().cpu().clone()
        for part, values in zip(PARTS, (indices, old, new), strict=True)
        for name, value in values.items()
    }
    header = {"shapes": {name: list(shape) for name, shape in shapes.items()}, "metadata": dict(metadata)}
    text = json.dumps(header)
    about = {
        "format": FORMAT,
        "version": str(VERSION),
        "checksum": _checksum(tensors, text),
        "delta": text,
    }
    with atomic_path(path) as temporary:
        write_tensors(tensors, temporary, about)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write` wrote.

    Returns:
        `(tensors, header)`, tensors named "index:NAME", "old:NAME" and "new:NAME".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no delta file, was written by a newer version, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"No delta file at {os.fspath(path)}.")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{os.fspath(path)} is damaged or no safetensors file ({error}). Train again."
        ) from error
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{os.fspath(path)} is a safetensors file but no delta (its metadata lacks format={FORMAT!r}). "
            "Deltas are written by Delta.save."
        )
    if about.get("version") != str(VERSION):
        raise ValueError(
            f"{os.fspath(path)} has delta format version {about.get('version')}, this tomfisher reads {VERSION}. "
            "Update tomfisher."
        )
    text = about.get("delta", "")
    if about.get("checksum") != _checksum(tensors, text):
        raise ValueError(f"{os.fspath(path)} is damaged: its checksum differs. Train again.")
    try:
        header = StrictDecoder(finite=False).decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{os.fspath(path)} is damaged: unreadable header. Train again.") from error
    if not isinstance(header, dict):
        raise ValueError(f"{os.fspath(path)} is damaged: unreadable header. Train again.")
    return tensors, header


def _checksum(tensors: Mapping[str, Tensor], header: str) -> str:
    """SHA-256 over the header, and names, dtypes, shapes and bytes of all tensors, in the order of the names."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
