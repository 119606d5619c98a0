"""Fisher stores on disk: a folder that any safetensors reader understands, plus `fisher.json`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from tomfisher.files import atomic_path, refuse_foreign, sha256_of_file, write_tensors
from tomfisher.fisher.journal import is_unfinished, unfinished_of
from tomfisher.fisher.shards import METADATA, Layout, Shapes, altered, checksums, lay_out
from tomfisher.ops import Span
from tomfisher.ops.spans import read_spans
from tomfisher.progress import progress_bar
from tomfisher.tensor_files import bytes_of
from tomfisher.text_files import read_json

FORMAT = 2
WHOLE_FILES = 1  # the format of stores that record one SHA-256 a shard
INDEX = "model.safetensors.index.json"
RECORD = "fisher.json"
_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def write_store(
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    path: str | os.PathLike[str],
    shapes: Shapes | None = None,
) -> None:
    """Write shards of at most 2 GiB (a larger tensor gets its own), the index and the record.

    Args:
        tensors: float32, by parameter name.
        facts: what the record says of them, fit for JSON.
        path: folder to create or, where it is a store, to replace.
        shapes: of the tensors, where they are known without reading them.

    Raises:
        OSError: of `check_target`.
    """
    path = Path(path)
    check_target(path)
    layout = lay_out({name: tuple(tensors[name].shape) for name in tensors} if shapes is None else shapes)
    digests = {}
    with atomic_path(path) as folder:
        folder.mkdir()
        for file, shard in progress_bar(layout.shards.items(), desc="Writing store", unit="shard"):
            digests.update(_write_shard({name: tensors[name] for name in shard.starts}, folder / file))
        write_records(folder, layout, facts, digests)


def _write_shard(tensors: dict[str, Tensor], file: Path) -> dict[str, str]:
    """Write one file; SHA-256 of each of its tensors. A function, so that one shard is held at a time."""
    held = {name: tensors.pop(name).detach().cpu().contiguous() for name in list(tensors)}
    write_tensors(held, file, metadata=METADATA)
    return {name: hashlib.sha256(bytes_of(held[name])).hexdigest() for name in held}


def write_records(folder: Path, layout: Layout, facts: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    """Write index and record beside finished shards.

    Args:
        folder: of the shards.
        layout: of the store.
        facts: what the record says of the tensors, fit for JSON.
        digests: SHA-256 of each tensor's bytes.
    """
    shards = {
        file: checksums(folder / file, {name: digests[name] for name in shard.starts})
        for file, shard in layout.shards.items()
    }
    _write_json(folder / INDEX, layout.index)
    _write_json(folder / RECORD, {"format": FORMAT, **facts, "shards": shards})


def recorded_digests(path: Path) -> dict[str, str]:
    """SHA-256 of each tensor's bytes, as the record of a store says; empty where there is none, or an older one."""
    record = _read_json(path / RECORD) if (path / RECORD).is_file() else {}
    if record.get("format") != FORMAT:
        return {}
    shards = _field(path / RECORD, record, "shards").values()
    return {name: digest for shard in shards for name, digest in shard["sha256"].items()}


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse, before the work as before the writing, what a store must not replace.

    Raises:
        FileExistsError: something that is no store, or a store with other files in it.
        PermissionError: a store that its owner has made read-only.
    """
    path = Path(path)
    refuse_foreign(path, RECORD, _is_own, "Fisher store")
    files = (path, *path.iterdir()) if path.exists() else ()
    kept = [file for file in files if file.exists() and not file.stat().st_mode & stat.S_IWUSR]
    if kept:
        raise PermissionError(
            f"The store {path} is read-only ({kept[0].name}), so it is left alone. Choose another path, or allow "
            f"it: chmod -R u+w {path}"
        )


def _is_own(name: str) -> bool:
    return name in (RECORD, INDEX) or _SHARD.fullmatch(name) is not None


def read_store(
    path: str | os.PathLike[str], verify: bool = True
) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Check a store and open it: tensors that are read when asked for, and what the record says of them.

    Args:
        path: the folder.
        verify: compare everything in the shards with its recorded SHA-256.

    Raises:
        FileNotFoundError: no store there.
        ValueError: the store is incomplete, altered or of an unknown format.
    """
    path = Path(path)
    if not path.is_dir() and is_unfinished(path):
        raise FileNotFoundError(
            f"The Fisher store {path} is not finished. What there is of it lies in {unfinished_of(path)}: run the "
            "command that began it again, and it goes on from there."
        )
    if not path.is_dir():
        raise FileNotFoundError(
            f"No Fisher store at {path}. Make one with `tomfisher fisher --output_path {path}`."
        )
    record, index = _read_json(path / RECORD), _read_json(path / INDEX)
    if record.get("format") not in (WHOLE_FILES, FORMAT):
        raise ValueError(
            f"{path / RECORD} has format {record.get('format')!r}; this version reads {WHOLE_FILES} and {FORMAT}. "
            "Compute the store again, or use the version of tomfisher that wrote it."
        )
    shards, weight_map = _field(path / RECORD, record, "shards"), _field(path / INDEX, index, "weight_map")
    check_bytes = _check_whole if record["format"] == WHOLE_FILES else _check_tensors
    for file, expected in progress_bar(shards.items(), desc="Checking store", unit="shard"):
        _check_shard(path / file, expected)
        if verify:
            check_bytes(path / file, expected)
    _check_index(path, shards, weight_map)
    if "roads" in record:  # the name of `methods` in older stores
        record["methods"] = record.pop("roads")
    for name, kind in (("num_samples", int), ("num_tokens", int), ("methods", dict)):
        _field(path / RECORD, record, name, kind)
    return _LazyTensors(path, weight_map), {k: v for k, v in record.items() if k not in ("format", "shards")}


_AGAIN = "The store is damaged: delete it and compute it again."


class OnDisk(Mapping[str, Tensor]):
    """Tensors that are read when they are asked for, one at a time."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, without reading any."""


class _LazyTensors(OnDisk):
    """Tensors of a sharded store, memory-mapped one at a time."""

    def __init__(self, folder: Path, weight_map: dict[str, str]) -> None:
        self._folder = folder
        self._weight_map = weight_map
        self._spans: dict[str, dict[str, Span]] = {}

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._folder / self._weight_map[name], framework="pt") as shard:
            return shard.get_tensor(name)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: self.span(name).shape for name in self}

    def span(self, name: str) -> Span:
        """Where the tensor's bytes lie."""
        file = self._weight_map[name]
        if file not in self._spans:
            self._spans[file] = read_spans(self._folder / file)
        if name not in self._spans[file]:
            raise ValueError(f"{self._folder / file} lacks {name!r}, which {INDEX} says it holds. {_AGAIN}")
        return self._spans[file][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weight_map)

    def __len__(self) -> int:
        return len(self._weight_map)


def _check_index(path: Path, shards: dict[str, Any], weight_map: dict[str, Any]) -> None:
    """The index names every tensor of every shard, and nothing else."""
    listed = {(name, str(file)) for name, file in weight_map.items()}
    there = {(name, file) for file in shards for name in read_spans(path / file)}
    for differing, what in ((listed - there, "no shard holds"), (there - listed, f"{INDEX} does not name")):
        if differing:
            name, file = min(differing)
            raise ValueError(f"{path}: {file} and {name!r} do not fit: {what} it. {_AGAIN}")


def _field(file: Path, content: dict[str, Any], name: str, kind: type = dict) -> Any:
    if not isinstance(content.get(name), kind):
        raise ValueError(f"{file} has no usable {name!r}: {content.get(name)!r:.80}. {_AGAIN}")
    return content[name]


def _check_shard(file: Path, expected: Any) -> None:
    if not file.is_file():
        raise ValueError(f"{file} is missing. {_AGAIN}")
    if not isinstance(expected, dict) or not {"bytes", "sha256"} <= expected.keys():
        raise ValueError(f"{file.parent / RECORD} has no size and checksum of {file.name}. {_AGAIN}")
    size = file.stat().st_size
    if size != expected["bytes"]:
        raise ValueError(f"{file} has {size} bytes, its record says {expected['bytes']}. {_AGAIN}")


def _check_whole(file: Path, expected: dict[str, Any]) -> None:
    if sha256_of_file(file) != expected["sha256"]:
        raise ValueError(f"{file} does not have its recorded SHA-256. {_AGAIN}")


def _check_tensors(file: Path, expected: dict[str, Any]) -> None:
    if not isinstance(expected["sha256"], dict) or "sha256_header" not in expected:
        raise ValueError(f"{file.parent / RECORD} has no checksums of the tensors in {file.name}. {_AGAIN}")
    if (part := altered(file, expected)) is not None:
        raise ValueError(f"{file}: {part} does not have its recorded SHA-256. {_AGAIN}")


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file} is missing, so {file.parent} is not a complete Fisher store. {_AGAIN}")
    try:
        content = read_json(file)
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{file} is not valid JSON ({error}). {_AGAIN}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no JSON object but a {type(content).__name__}. {_AGAIN}")
    return content
