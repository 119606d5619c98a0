"""The files of a store: which tensor lies where, known from the shapes alone, and what is checked of them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory

from tomfisher.ops.spans import read_spans

Shapes = Mapping[str, tuple[int, ...]]
SHARD_BYTES = 2 * 2**30
METADATA = {"format": "pt"}
ITEM = 4  # bytes of a float32
BLOCK = 1 << 24  # bytes that are hashed or written at once


@dataclass(frozen=True)
class Shard:
    """A safetensors file of float32 tensors before it is written.

    Attributes:
        file: its name.
        header: its first bytes, as the library writes them.
        starts: name to the place of the tensor's first byte in the file, in the order of the file.
        size: bytes of the whole file.
    """

    file: str
    header: bytes
    starts: dict[str, int]
    size: int


@dataclass(frozen=True)
class Layout:
    """All files of a store.

    Attributes:
        shards: file name to shard.
        weight_map: tensor name to file name, in the order of the tensors.
        metadata: what the index says beside it.
    """

    shards: dict[str, Shard]
    weight_map: dict[str, str]
    metadata: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards.values())

    @property
    def index(self) -> dict[str, Any]:
        """What stands in `model.safetensors.index.json`."""
        return {"metadata": self.metadata, "weight_map": self.weight_map}


def lay_out(shapes: Shapes, shard_bytes: int | None = None) -> Layout:
    """Divide tensors among files as `huggingface_hub` does, in their order.

    Args:
        shapes: of float32 tensors, by name.
        shard_bytes: the most that the tensors of a file take, unless one alone is larger; None is 2 GiB.
    """
    split = split_state_dict_into_shards_factory(
        dict(shapes),
        get_storage_size=_bytes_of,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES if shard_bytes is None else shard_bytes,
    )
    shards = {
        file: _shard(file, {name: shapes[name] for name in names})
        for file, names in split.filename_to_tensors.items()
    }
    return Layout(shards, {name: split.tensor_to_filename[name] for name in shapes}, split.metadata)


def _bytes_of(shape: tuple[int, ...]) -> int:
    return ITEM * math.prod(shape)


def _shard(file: str, shapes: Shapes) -> Shard:
    """Safetensors sorts tensors of one dtype by name and fills the header up to a multiple of 8 with spaces."""
    entries: dict[str, Any] = {"__metadata__": METADATA}
    offsets, stop = {}, 0
    for name in sorted(shapes):
        offsets[name], stop = stop, stop + _bytes_of(shapes[name])
        entries[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [offsets[name], stop]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    starts = {name: len(header) + offset for name, offset in offsets.items()}
    return Shard(file, header, starts, len(header) + stop)


def sha256_of_header(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a safetensors file up to its first tensor."""
    with open(path, "rb") as file:
        prefix = file.read(8)
        return hashlib.sha256(prefix + file.read(int.from_bytes(prefix, "little"))).hexdigest()


def sha256_of_part(path: str | os.PathLike[str], start: int, size: int) -> str:
    """SHA-256 of some of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        while size > 0 and (block := file.read(min(size, BLOCK))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def checksums(path: str | os.PathLike[str], tensors: Mapping[str, str]) -> dict[str, Any]:
    """What a store records of a shard: size, SHA-256 of the header, and one of every tensor.

    One per tensor, because tensors are computed in another order than that of the file: each is hashed as it is
    written, and the file is not read again.

    Args:
        path: the finished file.
        tensors: SHA-256 of each tensor's bytes, in the order of the file.
    """
    return {
        "bytes": os.stat(path).st_size,
        "sha256_header": sha256_of_header(path),
        "sha256": dict(tensors),
    }


def altered(path: str | os.PathLike[str], recorded: Mapping[str, Any]) -> str | None:
    """The part of a shard that is not as `checksums` recorded it: "header" or a tensor's name; None if all is.

    Reads the file once from beginning to end.

    Raises:
        ValueError: the header is damaged.
    """
    if sha256_of_header(path) != recorded["sha256_header"]:
        return "header"
    expected = recorded["sha256"]
    for name, span in read_spans(path).items():
        if sha256_of_part(path, span.offset, span.numel * span.dtype.itemsize) != expected.get(name):
            return name
    return None
