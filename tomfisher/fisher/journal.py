"""The journal of a store that is not finished: what is on the disk for good, and what the next step needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tomfisher.files import sync_names
from tomfisher.tensor_files import TensorFile, sha256_of_tensors

FILE = "journal.safetensors"
TEMPORARY = (f".{FILE}.", ".tmp")  # how the names begin under which we, and safetensors, write it first
JOURNAL = TensorFile(
    "journal",
    1,
    sha256_of_tensors,
    "runs whose store is not finished",
    "Delete the folder that it lies in, and start the run again.",
)


@dataclass
class Journal:
    """What is known of an unfinished store, all of it fit for JSON.

    Attributes:
        run: facts by which the run is known again: model, data, settings.
        shapes: of the tensors, in their order.
        shard_bytes: the largest shard.
        steps: what is done, in order.
        rows: tensor name to the ranges of rows that are written, merged and in order.
        sha256: of every tensor that was written from its first row to its last.
        facts: what the steps so far found out.
    """

    run: dict[str, Any]
    shapes: dict[str, list[int]]
    shard_bytes: int
    steps: list[str] = field(default_factory=list)
    rows: dict[str, list[list[int]]] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Replace the journal in `folder` by this one, all or nothing."""
        JOURNAL.write(folder / FILE, tensors, asdict(self))
        sync_names(folder)

    @classmethod
    def read(cls, folder: Path) -> tuple[Journal, dict[str, Tensor]]:
        """The journal in `folder`, and the tensors that were carried.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged or was written by a newer version.
        """
        tensors, header = JOURNAL.read(folder / FILE)
        return cls(**header), tensors

    def differing(self, other: Journal) -> list[str]:
        """The keys of `run`, "parameters" or "shard_bytes": where this is a journal of another run."""
        keys = {**self.run, **other.run}
        absent = object()
        found = [key for key in keys if self.run.get(key, absent) != other.run.get(key, absent)]
        if list(self.shapes.items()) != list(other.shapes.items()):
            found.append("parameters")
        if self.shard_bytes != other.shard_bytes:
            found.append("shard_bytes")
        return found

    def add_rows(self, name: str, start: int, stop: int) -> None:
        """Note rows of a tensor as written."""
        merged: list[list[int]] = []
        for first, last in sorted([*self.rows.get(name, []), [start, stop]]):
            if merged and first <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], last)
            else:
                merged.append([first, last])
        self.rows[name] = merged


def unfinished_of(path: str | os.PathLike[str]) -> Path:
    """The folder beside a store's path where it grows until it is finished."""
    path = Path(os.path.realpath(path))
    return path.with_name(f"{path.name}.unfinished")


def is_unfinished(path: str | os.PathLike[str]) -> bool:
    """Whether a run began a store for `path` and has not finished it."""
    return (unfinished_of(path) / FILE).is_file()


def clear_temporaries(folder: Path) -> None:
    """Remove what a run that was killed while it wrote the journal has left."""
    for file in list(folder.iterdir()):
        if file.name.startswith(TEMPORARY):
            file.unlink()
