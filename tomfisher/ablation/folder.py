"""Where ablations are kept: one file per finished point, refused when the study behind them is another."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, MutableMapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tomfisher.ablation.results import AblationPoint, Ablations, point_from
from tomfisher.files import atomic_path
from tomfisher.locks import locked
from tomfisher.results.folder import RunFolder
from tomfisher.text_files import read_json

OWN_FILES = ("inputs.json", "ablations.json", "ablations.csv")
POINTS = "points"


class AblationFolder(MutableMapping[str, tuple[AblationPoint, dict[str, Any]]]):
    """Finished points by key, each a file that is written all or nothing; use `AblationFolder.open`.

    Args:
        path: the folder, which exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[AblationFolder]:
        """Lock a folder of ablations, making it if need be.

        Args:
            path: the folder.
            overwrite: delete the ablations that are there (only files that tomfisher writes).

        Raises:
            ValueError: it is a file, holds other things, or another process is working in it.
        """
        where = Path(path).expanduser()
        if where.exists() and not where.is_dir():
            raise ValueError(f"{str(where)!r} is a file. Give a folder for the ablations.")
        where.mkdir(parents=True, exist_ok=True)
        foreign = [
            item.name
            for item in where.iterdir()
            if item.name not in (*OWN_FILES, POINTS) and item.name[0] != "."
        ]
        if foreign:
            raise ValueError(
                f"{where} is no folder of ablations: it holds {', '.join(sorted(foreign)[:4])}. "
                "Give another --output_path."
            )
        with locked(where):
            folder = cls(where)
            if overwrite or not len(folder):  # an attempt without any result may be corrected
                shutil.rmtree(where / POINTS, ignore_errors=True)
                for name in OWN_FILES:
                    (where / name).unlink(missing_ok=True)
            for leftover in (*where.glob(".*.tmp"), *where.glob(f"{POINTS}/.*.tmp")):
                leftover.unlink()
            yield folder

    def pin(self, **facts: Any) -> None:
        """Record what the points depend on; refuse the folder when it was begun with something else.

        Raises:
            ValueError: a fact differs.
        """
        RunFolder(self.path).pin(**facts)

    def earlier(self) -> Ablations | None:
        """What the last call left here; None where there is nothing, or it is damaged."""
        try:
            return Ablations.load(self.path)
        except (FileNotFoundError, ValueError):
            return None

    def __getitem__(self, key: str) -> tuple[AblationPoint, dict[str, Any]]:
        file = self._file(key)
        if not file.is_file():
            raise KeyError(key)
        try:
            data = read_json(file)
            point = point_from(data["point"])
            if point.key != key:
                raise ValueError(f"it holds point {point.key}")
            return point, data["scores"]
        except (ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{file} is damaged ({error}); the point is measured again.", stacklevel=2)
            raise KeyError(key) from error

    def __setitem__(self, key: str, value: tuple[AblationPoint, dict[str, Any]]) -> None:
        with atomic_path(self._file(key)) as temporary:
            data = {"point": asdict(value[0]), "scores": value[1]}
            temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    def __delitem__(self, key: str) -> None:
        if not self._file(key).is_file():
            raise KeyError(key)
        self._file(key).unlink()

    def __iter__(self) -> Iterator[str]:
        return (file.stem for file in sorted((self.path / POINTS).glob("[!.]*.json")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _file(self, key: str) -> Path:
        return self.path / POINTS / f"{key}.json"
