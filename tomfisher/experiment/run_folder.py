"""The folder of one study: locked while in use, resumed if it is the same study, refused if it is not."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tomfisher.experiment.config import HEADER, PERPLEXITY_WINDOW, Config
from tomfisher.experiment.results import Point
from tomfisher.files import atomic_path
from tomfisher.locks import locked
from tomfisher.text_files import read_json, read_yaml

OWN_FILES = (
    "inputs.json",
    "results.json",
    "results.csv",
    "verdict.txt",
    "fisher-values.json",
    "analysis.json",
    "report.html",
    "finetune.json",
    "finetune.csv",
    "delta.safetensors",
)
LOOK = ("analysis_prompts", "analysis_random_masks")
FREE = ("output_path", *LOOK)  # no result depends on them
AFTER_FISHER = frozenset(  # settings that no Fisher store depends on
    (
        *("eval_dtype", "kappas", "scope", "fill", "compat", "random_seeds", "random_kappas"),
        *(
            "limit",
            "method",
            "normalize",
            "max_new_tokens",
            "temperature",
            "top_p",
            "repetitions",
            "batch_size",
        ),
        *("perplexity_tokens", "perplexity_window", "perplexity_stride"),
    )
)
OWN_FOLDERS = ("fisher", "masks", "points")
FIGURES = (
    "accuracy",
    "perplexity",
    "fisher-values",
    "mask-map",
    "frequency-rows",
    "spectrum-q",
    "spectrum-k",
    "spectrum-change-q",
    "spectrum-change-k",
    "sink-mass",
    "sink-angle",
    "attention-maps",
    "ablations",
    "architectures",
)
EXTRAS = {  # folders in which other files may lie, and what tomfisher writes there
    "ablations": (".lock", "inputs.json", "ablations.json", "ablations.csv", "points/*.json"),
    "finetune": ("finetune.json", "finetune.csv", "delta.safetensors"),
    "figures": tuple(f"{name}.{suffix}" for name in FIGURES for suffix in ("svg", "png")),
}


class RunFolder:
    """Reads and writes one run folder; use `RunFolder.open`.

    Args:
        path: the folder, which exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @contextlib.contextmanager
    def open(cls, config: Config, overwrite: bool = False) -> Iterator[RunFolder]:
        """Lock the config's run folder and make sure that it belongs to this config.

        Args:
            config: the study; everything but `output_path` and the settings of the analysis must equal the folder's
                `config.yaml`.
            overwrite: delete what an earlier study left there (only files that tomfisher writes).

        Yields:
            The folder, with `config.yaml` in it and leftovers of a killed run removed.

        Raises:
            ValueError: another study's folder (the differing settings are named), a folder with other things
                in it, or one that another process is working in.
        """
        path = Path(config.output_path).expanduser()
        if path.exists() and not path.is_dir():
            raise ValueError(f"output_path {str(path)!r} is a file. Give a folder for the run.")
        path.mkdir(parents=True, exist_ok=True)
        with locked(path):
            folder = cls(path)
            if overwrite and (path / "config.yaml").is_file():
                folder._refuse_foreign(path / "config.yaml")
                folder._clear(config)
            folder._claim(config)
            folder._sweep_leftovers()
            yield folder

    def pin(self, **facts: Any) -> None:
        """Record facts about the inputs on the first run; refuse the folder when a later run finds others.

        Raises:
            ValueError: a fact differs from what the folder's earlier results were computed with.
        """
        pinned = self.pinned()
        facts = json.loads(json.dumps(facts))
        differing = {
            key: (pinned[key], facts[key]) for key in facts if key in pinned and pinned[key] != facts[key]
        }
        if differing:
            raise ValueError(
                f"The inputs of {self.path} changed since it was begun:\n{_listed(_leaves(differing))}\n"
                "Its earlier results would not fit. Give another --output_path, or --overwrite to begin anew."
            )
        self._write_json("inputs.json", {**pinned, **facts})

    def pinned(self) -> dict[str, Any]:
        """The facts recorded so far."""
        file = self.path / "inputs.json"
        return dict(read_json(file)) if file.is_file() else {}

    def store_path(self, which: str) -> Path:
        """Where the Fisher store "task" or "control" lies."""
        return self.path / "fisher" / which

    def mask_path(self, key: str) -> Path:
        """Where the mask of a point lies."""
        return self.path / "masks" / f"{key}.safetensors"

    def save_point(self, point: Point, scores: dict[str, Any]) -> None:
        """Write a finished point with its records, all or nothing."""
        self._write_json(f"points/{point.key}.json", {"point": asdict(point), "scores": scores})

    def load_point(self, key: str) -> tuple[Point, dict[str, Any]] | None:
        """A finished point and its records; None when it is not there, or damaged (which is said)."""
        file = self.path / "points" / f"{key}.json"
        if not file.is_file():
            return None
        try:
            data = read_json(file)
            point = Point(**data["point"])
            if point.key != key:
                raise ValueError(f"it holds point {point.key}")
            return point, data["scores"]
        except (ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{file} is damaged ({error}); the point is measured again.", stacklevel=2)
            return None

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, all or nothing."""
        with atomic_path(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _write_json(self, name: str, data: dict[str, Any]) -> None:
        self.write_text(name, json.dumps(data, indent=1) + "\n")

    def _claim(self, config: Config) -> None:
        file = self.path / "config.yaml"
        if not file.is_file():
            foreign = [item.name for item in self.path.iterdir() if not item.name.startswith(".")]
            if foreign:
                raise ValueError(
                    f"{self.path} is no run folder: it has no config.yaml but holds "
                    f"{', '.join(sorted(foreign)[:4])}. Give another --output_path."
                )
            self.write_text("config.yaml", config.to_yaml())
            return
        self._refuse_foreign(file)
        if not any((self.path / name).exists() for name in OWN_FOLDERS):
            # an attempt that ended before its first result, by a mistyped model for example
            self._clear(config)
            return
        settings = _read_settings(file)
        differing = _differences(settings, config.to_dict())
        if differing:
            raise ValueError(
                f"{self.path} holds a study with other settings:\n{_listed(differing)}\n"
                "Give another --output_path, or --overwrite to delete that study and start again."
                f"{self._way_to_keep_stores(differing)}"
            )
        if any(settings[name] != getattr(config, name) for name in LOOK):
            self.write_text("config.yaml", config.to_yaml())

    def _way_to_keep_stores(self, differing: Iterable[str]) -> str:
        """How another study gets at this one's Fisher stores, where it only masks or measures otherwise."""
        if not AFTER_FISHER.issuperset(differing):
            return ""
        stores = {which: self.store_path(which) for which in ("task", "control")}
        flags = [f"--{which}_store {path}" for which, path in stores.items() if path.is_dir()]
        if not flags:
            return ""
        return (
            "\nThe Fisher stores do not depend on what differs; with another --output_path they are kept and used by "
            f"{' '.join(flags)}"
        )

    def _refuse_foreign(self, file: Path) -> None:
        """A `config.yaml` that is not ours marks somebody else's folder: nothing in it is touched."""
        if not file.read_text(encoding="utf-8", errors="replace").startswith(HEADER):
            raise ValueError(
                f"{file} was not written by tomfisher, so the folder is left alone. Give another --output_path."
            )

    def _clear(self, config: Config) -> None:
        """Delete the earlier study; the new `config.yaml` comes last, so that a kill on the way loses nothing."""
        for name in OWN_FOLDERS:
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
        for name in OWN_FILES:
            (self.path / name).unlink(missing_ok=True)
        for name, patterns in EXTRAS.items():
            _clear_extras(self.path / name, patterns)
        self.write_text("config.yaml", config.to_yaml())

    def _sweep_leftovers(self) -> None:
        """Remove temporary files and folders of a run that was killed while writing."""
        for parent in (self.path, *(self.path / name for name in OWN_FOLDERS)):
            for item in [*parent.glob(".*.tmp"), *parent.glob(".*.old")]:
                remove: Callable[[Path], None] = shutil.rmtree if item.is_dir() else Path.unlink
                remove(item)


def _clear_extras(folder: Path, patterns: Iterable[str]) -> None:
    """Delete the files that tomfisher writes, and the folders that are empty then."""
    for pattern in patterns:
        for file in folder.glob(pattern):
            if file.is_file():
                file.unlink()
    for emptied in (folder / "points", folder):
        with contextlib.suppress(OSError):  # not there, or not empty
            emptied.rmdir()


def _read_settings(file: Path) -> dict[str, Any]:
    """The folder's settings, defaults filled in, so that a config of an older version still compares."""
    try:
        settings = read_yaml(file)
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}). Use --overwrite to start again.") from error
    try:
        return Config.from_dict(settings).to_dict()
    except TypeError as error:
        raise ValueError(f"{file} is damaged ({error}). Use --overwrite to start again.") from error


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    differing = {key: (old[key], new[key]) for key in new if key not in FREE and old[key] != new[key]}
    if {old["perplexity_window"], new["perplexity_window"]} == {None, PERPLEXITY_WINDOW}:
        del differing["perplexity_window"]  # the default, and what older versions wrote for it
    return differing


def _leaves(differing: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Differences of nested facts, down to the entries that differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for key, (old, new) in differing.items():
        if isinstance(old, dict) and isinstance(new, dict):
            inner = {name: (old.get(name), new.get(name)) for name in {**old, **new}}
            changed = {name: pair for name, pair in inner.items() if pair[0] != pair[1]}
            found |= {f"{key}.{name}": pair for name, pair in _leaves(changed).items()}
        else:
            found[key] = (old, new)
    return found


def _listed(differing: dict[str, tuple[Any, Any]]) -> str:
    return "\n".join(f"  {key}: there {old!r}, now {new!r}" for key, (old, new) in differing.items())
