"""How far a study got, from its run folder."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tomfisher.results.folder import CONFIG, RunFolder
from tomfisher.studies.config import Config, read_yaml
from tomfisher.studies.points import planned_points


@dataclass(frozen=True)
class RunProgress:
    """What a run folder holds.

    Attributes:
        config: its study.
        measured: number of points that are finished.
        planned: number of points of the whole study.
        stores: "task" and "control", where the folder has that Fisher store.
        masks: number of mask files.
    """

    config: Config
    measured: int
    planned: int
    stores: tuple[str, ...]
    masks: int


def run_progress(run: str | os.PathLike[str]) -> RunProgress:
    """Count what is there, without opening it.

    Args:
        run: folder with a `config.yaml`.
    """
    folder = RunFolder(run)
    config = Config.from_dict(read_yaml(folder.path / CONFIG))
    plans = planned_points(config)
    return RunProgress(
        config,
        sum(folder.point_path(plan.key).is_file() for plan in plans),
        len(plans),
        tuple(which for which in ("task", "control") if folder.store_path(which).is_dir()),
        len(list((folder.path / "masks").glob("*.safetensors"))),
    )
