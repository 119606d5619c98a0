"""The mask file: one safetensors file of index vectors, with a JSON header and a checksum."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tomfisher.files import atomic_path, write_tensors
from tomfisher.text_files import StrictDecoder

FORMAT = "tomfisher-mask"
VERSION = 1


def some(names: Sequence[str], limit: int = 4) -> str:
    """The first few names for a message, and how many more there are."""
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"


def write(path: str | os.PathLike[str], indices: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Write index vectors and their header to `path`, all or nothing."""
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "checksum": checksum(indices),
        "mask": json.dumps(header),
    }
    own = {name: index.clone() for name, index in indices.items()}  # save_file refuses shared memory
    with atomic_path(path) as temporary:
        write_tensors(own, temporary, metadata)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write` wrote.

    Returns:
        `(indices, header)`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no mask file, was written by a newer version, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(
            f"No mask file at {os.fspath(path)}. A study keeps its masks in RUN/masks; tomfisher mask makes others."
        )
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            indices = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{os.fspath(path)} is damaged or no safetensors file ({error}). Make the mask again."
        ) from error
    header = _header(path, metadata)
    if metadata.get("checksum") != checksum(indices):
        raise ValueError(f"{os.fspath(path)} is damaged: its checksum differs. Make the mask again.")
    return indices, header


def recorded_checksum(path: str | os.PathLike[str]) -> str | None:
    """The checksum in a mask file's header, without reading the positions; None where there is no such thing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return (file.metadata() or {}).get("checksum")
    except (OSError, SafetensorError):
        return None


def _header(path: str | os.PathLike[str], metadata: dict[str, str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{os.fspath(path)} is a safetensors file but no mask (its metadata lacks format={FORMAT!r}). "
            "Masks are written by SparseMask.save."
        )
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{os.fspath(path)} has mask format version {metadata.get('version')}, "
            f"this tomfisher reads {VERSION}. Update tomfisher."
        )
    try:
        header = StrictDecoder(finite=False).decode(metadata["mask"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{os.fspath(path)} is damaged: unreadable header. Make the mask again.") from error
    if not isinstance(header, dict):
        raise ValueError(f"{os.fspath(path)} is damaged: unreadable header. Make the mask again.")
    return header


def checksum(indices: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and positions, in the order of the names; what `write` keeps in the file."""
    digest = hashlib.sha256()
    for name in sorted(indices):
        digest.update(f"{name}:{indices[name].numel()}:{indices[name].dtype};".encode())
        digest.update(indices[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
