"""Fisher stores on disk: a folder that any safetensors reader understands, plus `fisher.json`."""

from __future__ import annotations

import json
import os
import re
import stat
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tomfisher.files import atomic_path, refuse_foreign, sha256_of_file, write_tensors
from tomfisher.fisher.diagonal import FisherDiagonal
from tomfisher.fisher.shards import Span, read_spans
from tomfisher.progress import progress_bar
from tomfisher.text_files import read_json

FORMAT = 1
INDEX = "model.safetensors.index.json"
RECORD = "fisher.json"
SHARD_BYTES = 2 * 2**30
_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def write_store(fisher: FisherDiagonal, path: str | os.PathLike[str]) -> None:
    """Write shards of at most 2 GiB (a larger tensor gets its own), the index and the record."""
    path = Path(path)
    check_target(path)
    shards = _plan_shards(fisher)
    with atomic_path(path) as folder:
        folder.mkdir()
        weight_map, checksums = {}, {}
        for file, names in progress_bar(shards.items(), desc="Writing store", unit="shard"):
            tensors = {name: fisher[name].detach().cpu().contiguous() for name in names}
            write_tensors(tensors, folder / file, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(names, file))
            checksums[file] = {
                "sha256": sha256_of_file(folder / file),
                "bytes": (folder / file).stat().st_size,
            }
        total = sum(fisher[name].numel() * 4 for name in fisher)
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        record = {
            "format": FORMAT,
            "num_samples": fisher.num_samples,
            "num_tokens": fisher.num_tokens,
            **fisher.metadata,
            "roads": fisher.roads,
            "shards": checksums,
        }
        _write_json(folder / RECORD, record)


def write_finished(fisher: FisherDiagonal, path: str | os.PathLike[str]) -> None:
    """`write_store` for a Fisher that nobody else holds: where `path` is taken by now, it goes beside it.

    Raises:
        OSError: of `check_target`, with the name under which the store is written instead.
    """
    path = Path(path)
    try:
        check_target(path)
    except OSError as error:
        spare = path.with_name(f"fisher-{uuid.uuid4().hex[:8]}")
        write_store(fisher, spare)
        raise type(error)(f"{error} The finished Fisher is kept in {spare}.") from error
    write_store(fisher, path)


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


def read_store(path: str | os.PathLike[str], verify: bool = True) -> FisherDiagonal:
    """Check a store and open it lazily."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"No Fisher store at {path}. Make one with `tomfisher fisher --output_path {path}`."
        )
    record, index = _read_json(path / RECORD), _read_json(path / INDEX)
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{path / RECORD} has format {record.get('format')!r}; this version reads {FORMAT}. "
            "Compute the store again, or use the version of tomfisher that wrote it."
        )
    shards, weight_map = _field(path / RECORD, record, "shards"), _field(path / INDEX, index, "weight_map")
    for file, expected in progress_bar(shards.items(), desc="Checking store", unit="shard"):
        _check_shard(path / file, expected, verify)
    _check_index(path, shards, weight_map)
    own = ("format", "num_samples", "num_tokens", "roads", "shards")
    return FisherDiagonal(
        _LazyTensors(path, weight_map),
        _field(path / RECORD, record, "num_samples", int),
        _field(path / RECORD, record, "num_tokens", int),
        _field(path / RECORD, record, "roads"),
        {key: value for key, value in record.items() if key not in own},
    )


_AGAIN = "The store is damaged: delete it and compute it again."


class _LazyTensors(Mapping[str, Tensor]):
    """Tensors of a sharded store, memory-mapped one at a time."""

    def __init__(self, folder: Path, weight_map: dict[str, str]) -> None:
        self._folder = folder
        self._weight_map = weight_map
        self._spans: dict[str, dict[str, Span]] = {}

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._folder / self._weight_map[name], framework="pt") as shard:
            return shard.get_tensor(name)

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


def _plan_shards(fisher: FisherDiagonal) -> dict[str, list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name in fisher:
        size = fisher[name].numel() * 4
        if not groups or size > room:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(name)
        room -= size
    if len(groups) <= 1:
        return {"model.safetensors": groups[0] if groups else []}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": g for i, g in enumerate(groups, start=1)}


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


def _check_shard(file: Path, expected: Any, verify: bool) -> None:
    if not file.is_file():
        raise ValueError(f"{file} is missing. {_AGAIN}")
    if not isinstance(expected, dict) or not {"bytes", "sha256"} <= expected.keys():
        raise ValueError(f"{file.parent / RECORD} has no size and checksum of {file.name}. {_AGAIN}")
    size = file.stat().st_size
    if size != expected["bytes"]:
        raise ValueError(f"{file} has {size} bytes, its record says {expected['bytes']}. {_AGAIN}")
    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{file} is no readable safetensors file ({error}). {_AGAIN}") from error
    if verify and sha256_of_file(file) != expected["sha256"]:
        raise ValueError(f"{file} does not have its recorded SHA-256. {_AGAIN}")


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file} is missing, so {file.parent} is no complete Fisher store. {_AGAIN}")
    try:
        content = read_json(file)
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{file} is no valid JSON ({error}). {_AGAIN}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no JSON object but a {type(content).__name__}. {_AGAIN}")
    return content
