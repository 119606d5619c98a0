"""The folder of a study: locked while in use, resumed if it is the same study, refused if it is not."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tomfisher.files import atomic_path
from tomfisher.locks import locked
from tomfisher.results.row import Row, rows_of, states_of
from tomfisher.text_files import read_json

CONFIG, INPUTS, POINTS = "config.yaml", "inputs.json", "points"
FIGURES = (
    *("accuracy", "perplexity", "fisher-values", "mask-map", "frequency-rows", "spectrum-q", "spectrum-k"),
    *("spectrum-change-q", "spectrum-change-k", "sink-mass", "sink-angle", "attention-maps", "ablations"),
    *("architectures", "frontier"),
)
FINETUNE_FILES = ("finetune.json", "finetune.csv", "delta.safetensors")
ABLATION_FILES = (INPUTS, "ablations.json", "ablations.csv")
OWN_FILES = (
    *(INPUTS, "results.json", "results.csv", "verdict.txt", "fisher-values.json", "analysis.json"),
    "interaction.json",
    *("report.html", *FINETUNE_FILES),
)
CRITERIA = "criteria"  # sums of gradients and norms of inputs
OWN_FOLDERS = ("fisher", "masks", POINTS, CRITERIA)
EXTRAS = {  # folders in which other files may lie, and what tomfisher writes there
    "ablations": (".lock", *ABLATION_FILES, f"{POINTS}/*.json"),
    "finetune": (".lock", *FINETUNE_FILES),
    "figures": tuple(f"{name}.{suffix}" for name in FIGURES for suffix in ("svg", "png")),
}


class RunFolder:
    """Reads and writes the folder of one study; `opened` locks it.

    Args:
        path: the folder.
        writes: False for a rank that only reads what the first one writes: what would be written is passed over.
    """

    def __init__(self, path: str | os.PathLike[str], writes: bool = True) -> None:
        self.path = Path(path).expanduser()
        self.writes = writes

    @contextlib.contextmanager
    def opened(self) -> Iterator[RunFolder]:
        """Make the folder if need be and hold its lock.

        Raises:
            ValueError: it is a file, or another process is working in it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"output_path {str(self.path)!r} is a file. Give a folder for the run.")
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            yield self

    def pin(self, **facts: Any) -> None:
        """Record facts about the inputs on the first run; refuse the folder when a later run finds others.

        Raises:
            ValueError: a fact differs from what the folder's earlier results were computed with.
        """
        if not self.writes:
            return
        pinned = self.pinned()
        facts = json.loads(json.dumps(facts))
        differing = {
            key: (pinned[key], facts[key]) for key in facts if key in pinned and pinned[key] != facts[key]
        }
        if differing:
            raise ValueError(
                f"The inputs of {self.path} changed since it was begun:\n{listed(_leaves(differing))}\n"
                "Its earlier results would not fit. Give another --output_path, or --overwrite to start again."
            )
        self._write_json(INPUTS, {**pinned, **facts})

    def pinned(self) -> dict[str, Any]:
        """The facts recorded so far."""
        file = self.path / INPUTS
        return dict(read_json(file)) if file.is_file() else {}

    def store_path(self, which: str) -> Path:
        """Where the Fisher store "task" or "control" lies."""
        return self.path / "fisher" / which

    def mask_path(self, key: str) -> Path:
        """Where the mask of a point lies."""
        return self.path / "masks" / f"{key}.safetensors"

    def point_path(self, key: str) -> Path:
        """Where a finished point lies."""
        return self.path / POINTS / f"{key}.json"

    def points(self) -> list[str]:
        """The keys of the finished points, in alphabetical order."""
        return [file.stem for file in sorted((self.path / POINTS).glob("[!.]*.json"))]

    def save_point(self, rows: Iterable[Row], scores: Mapping[str, Any]) -> None:
        """Write a finished point with its records, all or nothing."""
        (state,), key = states_of(rows := list(rows)), rows[0].key
        self._write_json(f"{POINTS}/{key}.json", {"point": state, "scores": scores})

    def load_point(self, key: str) -> tuple[list[Row], dict[str, Any]] | None:
        """The rows and records of a finished point; None when it is not there, or damaged (with a warning)."""
        file = self.point_path(key)
        if not file.is_file():
            return None
        try:
            data = read_json(file)
            rows = rows_of(data["point"])
            if rows[0].key != key:
                raise ValueError(f"it holds point {rows[0].key}")
            return rows, data["scores"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            warnings.warn(f"{file} is damaged ({error}); the point is measured again.", stacklevel=2)
            return None

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, all or nothing."""
        if not self.writes:
            return
        with atomic_path(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def foreign(self, own: Iterable[str]) -> list[str]:
        """What lies here and is neither one of these names nor hidden."""
        names = {item.name for item in self.path.iterdir() if not item.name.startswith(".")}
        return sorted(names - set(own))

    def clear(
        self, files: Iterable[str], folders: Iterable[str], extras: Mapping[str, Iterable[str]]
    ) -> None:
        """Delete what tomfisher writes.

        Args:
            files: names of files here.
            folders: names of folders here, which go as a whole.
            extras: per folder that others may use too, patterns of the files of ours in it.
        """
        for name in folders:
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
        for name in files:
            (self.path / name).unlink(missing_ok=True)
        for name, patterns in extras.items():
            _clear_extras(self.path / name, patterns)

    def remove_leftovers(self) -> None:
        """Remove temporary files and folders of a run that was killed while writing."""
        for parent in (self.path, *(self.path / name for name in OWN_FOLDERS)):
            for item in [*parent.glob(".*.tmp"), *parent.glob(".*.old")]:
                remove: Callable[[Path], None] = shutil.rmtree if item.is_dir() else Path.unlink
                remove(item)

    def _write_json(self, name: str, data: dict[str, Any]) -> None:
        self.write_text(name, json.dumps(data, indent=1) + "\n")


def listed(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """What differs, a line each."""
    return "\n".join(f"  {key}: was {old!r}, now {new!r}" for key, (old, new) in differing.items())


def _clear_extras(folder: Path, patterns: Iterable[str]) -> None:
    """Delete the files that tomfisher writes, and the folders that are empty then."""
    for pattern in patterns:
        for file in folder.glob(pattern):
            if file.is_file():
                file.unlink()
    for emptied in (folder / POINTS, folder):
        with contextlib.suppress(OSError):  # not there, or not empty
            emptied.rmdir()


def _leaves(differing: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Differences of nested facts, down to the entries that differ."""
    leaves: dict[str, tuple[Any, Any]] = {}
    for key, (old, new) in differing.items():
        if isinstance(old, dict) and isinstance(new, dict):
            inner = {name: (old.get(name), new.get(name)) for name in {**old, **new}}
            changed = {name: pair for name, pair in inner.items() if pair[0] != pair[1]}
            leaves |= {f"{key}.{name}": pair for name, pair in _leaves(changed).items()}
        else:
            leaves[key] = (old, new)
    return leaves
