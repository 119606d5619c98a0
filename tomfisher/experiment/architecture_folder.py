"""The folder of the same study on several architectures: written after the runs, read again from their folders."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tomfisher import provenance
from tomfisher.experiment.architectures import Outcome, outcome, read_inside, render
from tomfisher.experiment.config import ARCHITECTURES as PRESET
from tomfisher.experiment.equal_kappa import common_kappas, row_at
from tomfisher.experiment.results import CONTROL_ONLY, RANDOM, Results
from tomfisher.files import atomic_path
from tomfisher.text_files import read_json, read_yaml

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
            outcomes.append(outcome(name, results, read_inside(folder / name)))
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
        found = read_json(folder / f"{PRESET}.json")
        return {key: found[key] for key in ("command", "versions", "finished")}
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
        "architectures": [asdict(found) for found in outcomes],
    }
    texts = {"json": json.dumps(data, indent=1), "txt": render(outcomes)}
    for suffix, text in texts.items():
        with atomic_path(Path(folder) / f"{PRESET}.{suffix}") as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
    with (
        atomic_path(Path(folder) / f"{PRESET}.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as handle,
    ):
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(
            ["architecture", "kappa", "condition", "state", "n", "accuracy", "ci95_low", "ci95_high"]
        )
        shared = common_kappas(outcomes)
        for found in outcomes:
            writer.writerows(_csv_rows(found, [kappa for kappa in shared if kappa != found.kappa]))


def _csv_rows(found: Outcome, others: Sequence[float]) -> list[list[Any]]:
    """Every condition at the architecture's own κ, and the headline condition at the other common ones."""
    rows = []
    for condition, states in found.conditions.items():
        rows += _csv_states(found, found.kappa, condition, states)
    headline = next(iter(found.conditions))
    for kappa in others:
        row = row_at(found, kappa)
        states = {state: row[state] for state in ("after", CONTROL_ONLY, RANDOM)}
        rows += _csv_states(found, kappa, headline, states)
    return rows


def _csv_states(found: Outcome, kappa: float, condition: str, states: dict[str, Any]) -> list[list[Any]]:
    return [
        [found.architecture, kappa, condition, state, score["n"], score["accuracy"], *score["ci95"]]
        for state, scores in states.items()
        for score in (scores if isinstance(scores, list) else [scores])
    ]
