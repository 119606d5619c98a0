"""The folder of the same study on several architectures: written after the runs, read again from their folders."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomfisher import provenance
from tomfisher.files import atomic_path
from tomfisher.results.analysis import read_analysis
from tomfisher.results.architecture_table import render
from tomfisher.results.architectures import Outcome, outcome
from tomfisher.results.equal_kappa import common_kappas
from tomfisher.results.results import Results, write_csv
from tomfisher.results.row import Row
from tomfisher.text_files import read_json, read_yaml

PRESET = "architectures"  # the preset of the studies, their folder's files and the figure
COLUMNS = ("architecture", "kappa", "condition", "state", "n", "accuracy", "ci95_low", "ci95_high")
OWN_FILES = (*(f"{PRESET}.{suffix}" for suffix in ("json", "csv", "txt")), "report.html")
OWN_FIGURES = tuple(f"figures/{PRESET}.{suffix}" for suffix in ("svg", "png"))
_DAMAGED = (OSError, ValueError, KeyError, IndexError, TypeError)


@dataclass(frozen=True)
class Architectures:
    """The same study on several architectures, as their run folders have it now.

    Args:
        path: the folder that holds the run folders.
        outcomes: of the finished studies.
        missing: per architecture without an outcome, why there is none.
        notes: what keeps the studies from being compared, if anything.
        record: what `architectures.json` says about its making: command, versions, time.
    """

    path: Path
    outcomes: tuple[Outcome, ...]
    missing: dict[str, str]
    notes: tuple[str, ...]
    record: dict[str, Any]


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is no run itself but holds runs of the preset, each in a folder named after its architecture."""
    return not (Path(path) / "config.yaml").exists() and any(_studies(Path(path)))


def above(run: str | os.PathLike[str]) -> Path | None:
    """The folder of architectures that a run folder lies in; None where it lies in none."""
    own = Path(run).resolve()
    return own.parent if is_folder(own.parent) and own.name in _studies(own.parent) else None


def _studies(path: Path) -> list[str]:
    """The architectures whose run folders lie below, finished or not."""
    from tomfisher.testbed import ARCHITECTURES

    return [name for name in ARCHITECTURES if _model(path / name) == f"testbed2-{name}"]


def _model(run: Path) -> str | None:
    try:
        return str(read_yaml(run / "config.yaml")["model"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read(path: str | os.PathLike[str]) -> Architectures:
    """Gather the outcomes from the run folders, so that they are those of the runs as they are now.

    Args:
        path: the folder above the run folders.

    Raises:
        ValueError: none of the studies is finished.
    """
    from tomfisher.testbed import ARCHITECTURES

    folder, studies = Path(path), _studies(Path(path))
    outcomes, asked, missing = [], set(), {}
    again = f"tomfisher run --preset {PRESET} --output_path {folder} does what is left."
    for name in ARCHITECTURES:
        if name not in studies:
            missing[name] = f"There is no run of it in {folder / name}. {again}"
            continue
        try:
            results = Results.load(folder / name)
            outcomes.append(outcome(name, results, read_analysis(folder / name)))
            asked.add(json.dumps([results.provenance["data"][key] for key in ("questions", "control")]))
        except FileNotFoundError:
            missing[name] = f"The run in {folder / name} is not finished. {again}"
        except _DAMAGED as error:
            missing[name] = (
                f"The run in {folder / name} cannot be used ({type(error).__name__}: {error}). {again}"
            )
    if not outcomes:
        raise ValueError(f"{folder} holds no finished study of an architecture. {again}")
    notes = () if len(asked) < 2 else ("The studies did not all ask the same questions on the same text.",)
    return Architectures(folder, tuple(outcomes), missing, notes, _record(folder))


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = read_json(folder / f"{PRESET}.json")
        return {key: record[key] for key in ("command", "versions", "finished")}
    except _DAMAGED:
        return {}


def clear(folder: str | os.PathLike[str]) -> None:
    """Delete what tomfisher wrote above the run folders."""
    for name in (*OWN_FILES, *OWN_FIGURES):
        (Path(folder) / name).unlink(missing_ok=True)


def save(folder: str | os.PathLike[str], outcomes: Sequence[Outcome]) -> None:
    """Write `architectures.json`, `architectures.csv` and `architectures.txt` into a folder, each all or nothing."""
    data = {
        "command": provenance.command_line(),
        "versions": provenance.versions(),
        "finished": provenance.now(),
        "architectures": [outcome.to_dict() for outcome in outcomes],
    }
    texts = {"json": json.dumps(data, indent=1), "txt": render(outcomes)}
    for suffix, text in texts.items():
        with atomic_path(Path(folder) / f"{PRESET}.{suffix}") as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
    rows = [row for outcome in outcomes for row in _rows(outcome, common_kappas(outcomes))]
    write_csv(rows, Path(folder) / f"{PRESET}.csv", COLUMNS)


def _rows(outcome: Outcome, shared: Sequence[float]) -> list[Row]:
    """Every condition at the architecture's own κ, and the headline condition at the other common ones."""
    others = [kappa for kappa in shared if kappa != outcome.kappa]
    return [
        *outcome.own_rows(),
        *(row for kappa in others for row in outcome.rows(kappa, outcome.results.headline)),
    ]
