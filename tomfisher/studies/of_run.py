"""What a later study takes over from the folder of a run: its settings, and one of its masks."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tomfisher.results.folder import CONFIG, RunFolder
from tomfisher.results.row import TASK_CONTROL, point_key
from tomfisher.studies.config import read_yaml


def settings_of_run(
    run: str | os.PathLike[str], names: Collection[str], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a run, under those that are given.

    Args:
        run: its folder.
        names: the settings that are taken over.
        given: those that come first.

    Raises:
        ValueError: it is not a run folder.
    """
    file = RunFolder(run).path / CONFIG
    if not file.is_file():
        raise ValueError(
            f"{os.fspath(run)!r} is not a run folder: it has no config.yaml. Give a folder of `tomfisher run`."
        )
    return {name: value for name, value in read_yaml(file).items() if name in names} | dict(given)


def mask_of_run(run: str | os.PathLike[str], kappa: float) -> Path:
    """The file of a run's task-control mask.

    Args:
        run: its folder.
        kappa: of the mask.

    Raises:
        ValueError: the run has no such mask.
    """
    path = RunFolder(run).mask_path(point_key(TASK_CONTROL, kappa))
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob(f"{TASK_CONTROL}-*.safetensors")))
        raise ValueError(
            f"{os.fspath(run)} has no {TASK_CONTROL} mask at kappa {kappa:g}. It has: {there or 'none'}."
        )
    return path
