"""The mask file: one safetensors file of index vectors, with a JSON header and a checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

from torch import Tensor

from tomfisher.tensor_files import TensorFile


def some(names: Sequence[str]) -> str:
    """The first few names for a message, and how many more there are."""
    listed = ", ".join(names[:4])
    return listed if len(names) <= 4 else f"{listed} and {len(names) - 4} more"


def recorded_checksum(path: str | os.PathLike[str]) -> str | None:
    """The checksum in a mask file's header, without reading the positions; None where there is no such thing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return (file.metadata() or {}).get("checksum")
    except (OSError, SafetensorError):
        return None


def checksum(indices: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and positions, in the order of the names; what the file keeps."""
    digest = hashlib.sha256()
    for name in sorted(indices):
        digest.update(f"{name}:{indices[name].numel()}:{indices[name].dtype};".encode())
        digest.update(indices[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


MASK = TensorFile(
    "mask",
    1,
    lambda indices, header: checksum(indices),
    "SparseMask.save",
    "Make the mask again.",
    "A study keeps its masks in RUN/masks; tomfisher mask makes others.",
)
