"""The same study on several architectures, each in a run folder of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tomfisher.results.analysis import read_analysis
from tomfisher.results.architecture_folder import PRESET, clear, save
from tomfisher.results.architectures import Outcome, outcome
from tomfisher.studies.config import Config
from tomfisher.studies.experiment import Experiment


def configs(
    given: Mapping[str, Any] | None = None, config: str | os.PathLike[str] | None = None
) -> dict[str, Config]:
    """The studies of the preset, by architecture.

    Args:
        given: settings that differ from the preset's; `output_path` is the folder that holds the five run folders.
        config: a YAML file with more of them.

    Returns:
        One config per architecture, its run folder named after it.

    Raises:
        ValueError: a model is given, or a setting is unknown or out of range.
    """
    from tomfisher.testbed import ARCHITECTURES

    given = dict(given or {})
    if "model" in given:
        raise ValueError(
            f"The preset {PRESET} runs the models testbed2-{', testbed2-'.join(ARCHITECTURES)}; leave the model out. "
            f"A study of {given['model']} alone: --model {given['model']} without the preset."
        )
    base = Path(Config.resolve(given, config, PRESET).output_path)
    own = {name: {"model": f"testbed2-{name}", "output_path": str(base / name)} for name in ARCHITECTURES}
    return {name: Config.resolve(given | settings, config, PRESET) for name, settings in own.items()}


def run_architectures(
    given: Mapping[str, Any] | None = None,
    config: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> tuple[Path, list[Outcome]]:
    """Run or resume the five studies and write `architectures.json`, `.csv` and `.txt` above their folders.

    Reports are written by `tomfisher.report.write`, of each run folder and of the one above them.

    Args:
        given: see `configs`.
        config: see `configs`.
        overwrite: delete earlier studies in the same folders first.
        progress: show bars on a terminal, and say each step.
        say: see `Experiment`.

    Returns:
        The folder, and what was found in each architecture.

    Raises:
        ValueError: a run folder holds another study, or a setting is out of range.
    """
    outcomes = []
    studies = configs(given, config)
    folder = Path(next(iter(studies.values())).output_path).parent
    if overwrite:
        clear(folder)
    for name, study in studies.items():
        experiment = Experiment(study, overwrite=overwrite, say=say)
        if progress:
            experiment.say(f"{name}: {study.output_path}")
        results = experiment.run(progress=progress)
        outcomes.append(outcome(name, results, read_analysis(study.output_path)))
    save(folder, outcomes)
    return folder, outcomes
