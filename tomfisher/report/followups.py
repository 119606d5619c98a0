"""What was done with a run after it: ablations, training, grids of fills; shown only where it is of this run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tomfisher import text_files
from tomfisher.masks.store import recorded_checksum
from tomfisher.results.results import Results

AGAIN = {
    "ablations": "tomfisher ablate {run} --overwrite",
    "finetune": "tomfisher finetune {run} --kappa KAPPA --overwrite",
    "grid": "tomfisher sweep ... --fill FILL,FILL --output_path {run}/grid --overwrite",
}
_ASKED_BY = ("task", "limit", "seed")  # settings that decide which questions are asked


class Missing(NamedTuple):
    """A piece that a report could show and the run does not have.

    Attributes:
        what: the piece.
        why: the reason, and how to get it.
    """

    what: str
    why: str


def read_extras(path: Path, origin: Mapping[str, Any]) -> tuple[dict[str, Results], list[Missing]]:
    """The extras in a run folder, or in folders of their names below it, that are of this run.

    Args:
        path: the run folder.
        origin: the provenance of its results.

    Returns:
        Them by name, and those that are damaged or of something else.
    """
    extras: dict[str, Results] = {}
    missing = []
    origin = origin or _pinned(path)
    for name, command in AGAIN.items():
        file = path / f"{name}.json"
        file = file if file.is_file() else path / name / file.name
        content, problem = read_json(file)
        again = f"Write it again: {command.format(run=path)}."
        if problem:
            missing.append(Missing(file.name, f"{problem}. {again}"))
        elif content is not None:
            reasons = foreign(name, content.get("provenance"), origin, path)
            if reasons:
                why = f"{file} does not belong to this run: {'; '.join(reasons)}. {again}"
                missing.append(Missing(file.name, why))
            else:
                try:
                    extras[name] = Results.from_dict(content)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    why = f"{file.name} is damaged ({type(error).__name__}: {error}). {again}"
                    missing.append(Missing(file.name, why))
    return extras, missing


def read_json(file: Path) -> tuple[Any, str | None]:
    """The content of a JSON object, or None and what is wrong with the file (None: it is not there)."""
    if not file.is_file():
        return None, None
    try:
        content = text_files.read_json(file)
    except (OSError, ValueError) as error:
        return None, f"{file.name} cannot be read ({error})"
    if not isinstance(content, dict):
        return None, f"{file.name} holds no JSON object"
    return content, None


def foreign(name: str, theirs: Any, ours: Mapping[str, Any], path: Path) -> list[str]:
    """Why an extra is not of a run; nothing where it is, or where it does not say what it is of.

    Args:
        name: "ablations", "finetune" or "grid".
        theirs: its provenance.
        ours: that of the run's results.
        path: the run folder, with its masks.
    """
    if not isinstance(theirs, Mapping):
        return []
    reasons = []
    if _differ(theirs, ours, "model", "weights_sha256"):
        reasons.append("the model has other weights")
    if _differ(theirs, ours, "data", "control") or _differ(theirs, ours, "config", "task"):
        reasons.append("the task or the control text differs")
    elif _differ(theirs, ours, "data", "questions") and not _asked_otherwise(theirs, ours):
        reasons.append("the questions differ")
    if name == "grid":
        if any(_differ(theirs, ours, "fisher", which, "data_sha256") for which in ("task", "control")):
            reasons.append("its masks come from other Fisher diagonals")
    elif not _known_mask(_at(theirs, "mask", "sha256"), path):
        reasons.append(f"its mask is none of those in {path / 'masks'}")
    return reasons


def _known_mask(digest: Any, path: Path) -> bool:
    """Whether a mask is among those of the run; yes where either is unknown."""
    known = {recorded_checksum(file) for file in (path / "masks").glob("*.safetensors")} - {None}
    return digest is None or not known or digest in known


def _asked_otherwise(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether settings say that fewer, more or other questions were asked on purpose."""
    return any(_differ(theirs, ours, "config", name) for name in _ASKED_BY)


def _differ(theirs: Mapping[str, Any], ours: Mapping[str, Any], *keys: str) -> bool:
    """Whether both say something, and not the same."""
    first, second = _at(theirs, *keys), _at(ours, *keys)
    return first is not None and second is not None and first != second


def _at(facts: Any, *keys: str) -> Any:
    for key in keys:
        facts = facts.get(key) if isinstance(facts, Mapping) else None
    return facts


def _pinned(path: Path) -> dict[str, Any]:
    """What an interrupted study says about itself."""
    facts, _ = read_json(path / "inputs.json")
    return {} if facts is None else {**facts, "model": facts.get("evaluation_model")}
