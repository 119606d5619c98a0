"""How far the weights of a study's masks act together: `interaction.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomfisher.results.row import BASELINE
from tomfisher.studies.config import Config
from tomfisher.studies.parsing import parse_fill
from tomfisher.studies.points import PlannedPoint, planned_points
from tomfisher.text_files import read_json

if TYPE_CHECKING:
    from tomfisher.masks import SparseMask
    from tomfisher.models.load import LoadedModel
    from tomfisher.sample import Sample

FORMAT = 1


def plans_of(config: Config) -> list[PlannedPoint]:
    """The masks that are looked at: every one of the study, of the random ones that of the first seed."""
    return [p for p in planned_points(config) if p.mask != BASELINE and p.seed in (None, config.seed)]


def inputs_of(config: Config, masks: Mapping[str, SparseMask]) -> dict[str, Any]:
    """What the file depends on besides the run folder's settings."""
    return {"format": FORMAT, "masks": {key: mask.sha256 for key, mask in masks.items()}}


def is_current(file: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether a file is of these inputs; a damaged one is not."""
    try:
        return bool(read_json(file)["inputs"] == inputs)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def measure(
    config: Config,
    loaded: LoadedModel,
    samples: Sequence[Sample],
    plans: Sequence[PlannedPoint],
    masks: Mapping[str, SparseMask],
    progress: bool,
) -> dict[str, Any]:
    """The content of `interaction.json`, JSON-ready; what is not defined is None.

    Args:
        config: the study.
        loaded: its model, unperturbed.
        samples: the task's samples.
        plans: the masks' points.
        masks: by the key of the point.
        progress: show bars on a terminal.
    """
    from tomfisher.analysis.interaction import interactions
    from tomfisher.analysis.jsonable import jsonable

    found = interactions(
        loaded.model,
        samples,
        masks,
        parse_fill(config.fill),
        config.seed,
        config.compat,
        config.labels,
        config.reduction,
        config.tokens_per_batch,
        progress=progress,
    )
    entries = [
        {"rule": str(p.rule), "kappa": p.kappa, "mask": p.mask, "seed": p.seed, **found[p.key].to_dict()}
        for p in plans
    ]
    return {"samples": len(samples), "inputs": inputs_of(config, masks), "masks": jsonable(entries)}
