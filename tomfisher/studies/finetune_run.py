"""`finetune_run`: one mask trained beside random entries and LoRA, from files to a folder of results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from tomfisher import provenance
from tomfisher.files import refuse_existing, sha256_of_file
from tomfisher.masks import SparseMask
from tomfisher.models.load import LoadedModel, load_model
from tomfisher.results.folder import RunFolder
from tomfisher.results.results import FINETUNE, Results
from tomfisher.runtime.scan import scan_of
from tomfisher.studies.config import Config
from tomfisher.studies.finetune import Damage, Plan, compare
from tomfisher.studies.inputs import Inputs
from tomfisher.studies.measure import Measure
from tomfisher.studies.parsing import parse_fill
from tomfisher.studies.stores import check_belongs
from tomfisher.studies.training_samples import training_samples

PathLike = str | os.PathLike[str]


def finetune_run(
    config: Config,
    plan: Plan,
    mask: PathLike,
    output_path: PathLike,
    n_train: int = 80,
    n_validation: int = 20,
    train: str | None = None,
    balanced: bool = False,
    damage: PathLike | None = None,
    dtype: str = "fp32",
    overwrite: bool = False,
    recorded: Iterable[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Results:
    """Train the entries of a mask file, random ones and LoRA, measure each, and write what was found.

    Args:
        config: model, task and text; `n_task` is `n_train + n_validation`.
        plan: how the trainings are done.
        mask: file of the entries to train.
        output_path: folder for `finetune.json`, `finetune.csv` and, unless the training diverged, the delta.
        n_train: stories to train on.
        n_validation: stories that choose the learning rate.
        train: file of stories instead of the task's Fisher stories.
        balanced: train on every condition of the Fisher pool.
        damage: mask file of entries that are overwritten first, with the fill of `config`.
        dtype: of the weights.
        overwrite: replace what an earlier call left in the folder.
        recorded: settings of `config` to record.
        say: called with one line per step.

    Returns:
        The rows of every state, as they were written.

    Raises:
        ValueError: the folder holds a `finetune.json`, or another process is working in it.
    """
    chosen = SparseMask.load(mask)
    damaged = None if damage is None else SparseMask.load(damage)
    with RunFolder(output_path).opened() as folder:
        refuse_existing(folder.path / f"{FINETUNE}.json", overwrite)
        loaded = load_model(config.model, dtype, config.device, config.trust_remote_code, config.revision)
        check_belongs(chosen.shapes, loaded.model, f"The mask {mask}")
        if damaged is not None:
            check_belongs(damaged.shapes, loaded.model, f"The mask {damage}")
        inputs = Inputs(config)
        training = training_samples(config, inputs, loaded, n_train, n_validation, train, balanced)
        source = train or ("every condition of the Fisher pool" if balanced else "the task's Fisher stories")
        say(
            f"training on {len(training.train)} stories, choosing the learning rate on {len(training.validation)}, "
            f"of {source}"
        )
        # read before the work: a file that is gone afterwards must not cost the result
        origin = _provenance(config, inputs, loaded, recorded) | {
            "mask_file": _of_file(mask),
            "damage_file": _of_file(damage),
            "train_file": _of_file(train),
            "balanced": balanced,
        }
        data = {**inputs.evaluation_hashes(), "training": training.sha256}
        found, delta = compare(
            loaded.model,
            chosen,
            training.train,
            training.validation,
            Measure(config, inputs, loaded),
            plan,
            None if damaged is None else Damage(damaged, parse_fill(config.fill)),
            say=say,
        )
        found.provenance.update(origin, data=data, scan=scan_of(loaded.model), finished=provenance.now())
        found.save(folder.path, FINETUNE)
        if delta is not None:
            delta.save(folder.path / "delta.safetensors")
    return found


def _of_file(path: PathLike | None) -> dict[str, str] | None:
    return None if path is None else {"sha256": sha256_of_file(path)}


def _provenance(
    config: Config, inputs: Inputs, loaded: LoadedModel, recorded: Iterable[str]
) -> dict[str, Any]:
    return {
        "command": provenance.command_line(),
        "config": {name: config.to_dict()[name] for name in recorded},
        "model": loaded.identity,
        "evaluation": {"method": config.method, "chance": inputs.chance()},
        "versions": provenance.versions(),
        "machine": provenance.machine(next(loaded.model.parameters()).device),
    }
