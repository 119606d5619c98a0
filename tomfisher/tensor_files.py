"""Safetensors files of our own kinds: tensors, a JSON header and a checksum, written and read as a whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomfisher.files import atomic_path, write_tensors
from tomfisher.text_files import StrictDecoder

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TensorFile:
    """A kind of file.

    Args:
        kind: its name, such as "mask"; files say `format` "tomfisher-mask" and hold their header under "mask".
        version: of its format.
        checksum: of tensors and header.
        writer: what writes such files, for messages.
        again: how to have another one.
        where: where such files are found.
    """

    kind: str
    version: int
    checksum: Callable[[Mapping[str, Tensor], str], str]
    writer: str
    again: str
    where: str = ""

    @property
    def format(self) -> str:
        """What a file of this kind says it is."""
        return f"tomfisher-{self.kind}"

    def write(
        self, path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
    ) -> None:
        """Write tensors and header to `path`, all or nothing."""
        text = json.dumps(header)
        own = {
            name: tensor.detach().cpu().clone() for name, tensor in tensors.items()
        }  # none may share memory
        metadata = {
            "format": self.format,
            "version": str(self.version),
            "checksum": self.checksum(own, text),
            self.kind: text,
        }
        with atomic_path(path) as temporary:
            write_tensors(own, temporary, metadata)

    def read(self, path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and header of a file that `write` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is of no such kind, was written by a newer version, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        shown = os.fspath(path)
        if not Path(path).is_file():
            raise FileNotFoundError(f"No {self.kind} file at {shown}.{self.where and f' {self.where}'}")
        try:
            with safe_open(shown, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise ValueError(f"{shown} is damaged or no safetensors file ({error}). {self.again}") from error
        if metadata.get("format") != self.format:
            raise ValueError(
                f"{shown} is a safetensors file but no {self.kind} (its metadata lacks format={self.format!r}). "
                f"{self.kind.capitalize()}s are written by {self.writer}."
            )
        if metadata.get("version") != str(self.version):
            raise ValueError(
                f"{shown} has {self.kind} format version {metadata.get('version')}, this tomfisher reads "
                f"{self.version}. Update tomfisher."
            )
        text = metadata.get(self.kind, "")
        if metadata.get("checksum") != self.checksum(tensors, text):
            raise ValueError(f"{shown} is damaged: its checksum differs. {self.again}")
        try:
            header = StrictDecoder(finite=False).decode(text)
        except json.JSONDecodeError:
            header = None
        if not isinstance(header, dict):
            raise ValueError(f"{shown} is damaged: unreadable header. {self.again}")
        return tensors, header


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, row-major; no copy."""
    import torch

    vector = tensor.detach().as_strided(
        (tensor.numel(),), (1,)
    )  # `reshape` keeps a stride of 0 of a single entry
    return vector.view(torch.uint8).numpy().data


def sha256_of_tensors(tensors: Mapping[str, Tensor], header: str) -> str:
    """SHA-256 over the header, and names, dtypes, shapes and bytes of all tensors, in the order of the names."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
