"""A perturbed copy of a model, as a folder that transformers loads, with a record of what was done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tomfisher.files import atomic_path, refuse_foreign, sha256_of_file
from tomfisher.models.load import LoadedModel
from tomfisher.models.quiet import quiet_unless_terminal
from tomfisher.perturbation import Perturbation
from tomfisher.text_files import read_json

RECORD = "perturbation.json"


def write_perturbed(
    target: str | os.PathLike[str],
    loaded: LoadedModel,
    perturbation: Perturbation,
    mask_file: str | os.PathLike[str],
    **settings: Any,
) -> None:
    """Perturb a model, write it with its tokenizer and `perturbation.json`, all or nothing, and undo.

    Args:
        target: the folder; an earlier perturbed model in it is replaced.
        loaded: the model.
        perturbation: of it, not applied yet.
        mask_file: what its mask was read from, to record.
        settings: "fill", "compat" and "seed" of the perturbation, to record.

    Raises:
        FileExistsError: the folder holds something else.
    """
    mask = {"file": os.fspath(mask_file), "sha256": sha256_of_file(mask_file)}
    record = {
        "model": loaded.identity,
        "mask": {**mask, **perturbation.mask.describe()},
        **settings,
        "nnz": perturbation.nnz,
    }
    with perturbation, quiet_unless_terminal(), atomic_path(target) as temporary:
        loaded.model.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
        record["files"] = sorted(item.name for item in temporary.iterdir())
        refuse_other(target)
        (temporary / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def refuse_other(target: str | os.PathLike[str]) -> None:
    """Refuse to replace a folder that holds more than an earlier perturbed model.

    Raises:
        FileExistsError: it does.
    """
    file = Path(target) / RECORD
    record = read_json(file) if file.is_file() else {}
    files = record.get("files", []) if isinstance(record, dict) else []
    refuse_foreign(target, RECORD, [RECORD, *files].__contains__, "perturbed model")
