"""What a run folder holds, read for a report; what is not there is named, with the way to get it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tomfisher import text_files
from tomfisher.report.followups import Missing, read_extras, read_json
from tomfisher.results.architecture_folder import Architectures, above, is_folder, read
from tomfisher.results.results import Results
from tomfisher.results.row import BASELINE, CONTROL_ONLY, RANDOM, TASK_CONTROL, Row, grouped, rows_of
from tomfisher.results.rule import PAPER
from tomfisher.results.verdict import Verdict, headline_tests, judge

__all__ = ["Missing", "RunData", "beside_each_other", "folder_labels", "load"]


@dataclass(frozen=True)
class RunData:
    """One study as a report shows it; made by `load`.

    Attributes:
        path: the run folder, as it was given.
        results: rows of the untouched model and of every mask.
        config: the settings (`config.yaml`, or what the results remember of it).
        inside: content of `analysis.json`, or None.
        values: content of `fisher-values.json`, or None.
        together: content of `interaction.json`, or None.
        extras: what `ablations.json`, `finetune.json` and `grid.json` hold where there is such a file of this run, in
            the run folder or in a folder of that name below it.
        architectures: the studies of the folder that the run lies in, if it is that of the preset architectures.
        missing: what the report cannot show.
        complete: whether the study came to its end.
        label: what tells the run from the one beside it, where their names do not (`beside_each_other`).
    """

    path: Path
    results: Results
    config: dict[str, Any]
    inside: dict[str, Any] | None = None
    values: dict[str, Any] | None = None
    extras: dict[str, Results] = field(default_factory=dict)
    architectures: Architectures | None = None
    missing: tuple[Missing, ...] = ()
    complete: bool = True
    label: str = ""
    together: dict[str, Any] | None = None

    @cached_property
    def verdict(self) -> Verdict:
        """What the numbers say (`tomfisher.results.verdict`)."""
        return judge(self.results)

    @property
    def name(self) -> str:
        """The model and what it was studied on."""
        return f"{self.config.get('model', 'model')}, {self.task} against {self.control}"

    @property
    def heading(self) -> str:
        """The name, and after it the label if there is one."""
        return f"{self.name} ({self.label})" if self.label else self.name

    @property
    def task(self) -> str:
        """What the mask is for."""
        return str(self.config.get("task", "task"))

    @property
    def control(self) -> str:
        """What the mask shall leave alone."""
        return str(self.config.get("control", "control"))

    @property
    def focus(self) -> float | None:
        """The κ (paper's rule) of which details are shown: the verdict's, the analysis', or the lowest accuracy's."""
        if self.verdict.kappa is not None and self.verdict.rule == PAPER:
            return self.verdict.kappa
        if self.inside is not None and self.inside.get("kappa") in self.results.kappas:
            return float(self.inside["kappa"])
        return (
            min(
                (row for row in headline_tests(self.results) if row.rule == PAPER),
                key=lambda row: row.accuracy,
            ).kappa
            if self.results.kappas
            else None
        )


def beside_each_other(runs: Sequence[RunData]) -> list[RunData]:
    """The same runs, labelled by their folders where two have the same name."""
    labels = folder_labels(runs)
    names = [run.name for run in runs]
    return [
        replace(run, label=label) if names.count(run.name) > 1 else run
        for run, label in zip(runs, labels, strict=True)
    ]


def folder_labels(runs: Sequence[RunData]) -> list[str]:
    """A short word for each run: its folder's name, or the whole path where those are the same too."""
    folders = [Path(os.path.abspath(run.path)).name for run in runs]
    return folders if len(set(folders)) == len(folders) else [str(run.path) for run in runs]


def load(run: str | os.PathLike[str]) -> RunData:
    """Read a run folder.

    A study that was interrupted is read from its finished points; a damaged or absent optional file is listed in
    `missing`.

    Args:
        run: the folder, such as "runs/demo-testbed".

    Returns:
        A `RunData`.

    Raises:
        ValueError: there is no such folder, or it holds no results or damaged ones.
    """
    path = Path(run)
    if not path.is_dir():
        raise ValueError(
            f"{os.fspath(run)} is not a folder. Give the --output_path of a study, such as runs/demo-testbed "
            "(tomfisher run --preset demo-testbed makes it)."
        )
    if is_folder(path):
        raise ValueError(
            f"{path} holds the runs of several architectures. Give it alone for the report on all of them, or one of "
            "its run folders."
        )
    results, complete = _results(path)
    config = dict(results.provenance.get("config", {})) or _settings(path)
    missing = [] if complete else [_interrupted(results, config)]
    values, problem = read_json(path / "fisher-values.json")
    if values is not None and not {"task", "control"} <= set(values):
        values, problem = None, "fisher-values.json does not hold the values of both Fisher diagonals"
    if values is None:
        why = problem or "this run has no fisher-values.json"
        missing.append(
            Missing(
                "How large the Fisher values are",
                f"{why}. {_rerun(path)} adds it while the stores are there.",
            )
        )
    inside, problem = read_json(path / "analysis.json")
    if inside is not None and not isinstance(inside.get("states"), dict):
        inside, problem = None, "analysis.json holds no analysis of a study"
    if inside is None:
        why = problem or "this run has no analysis.json"
        prompts = " --analysis_prompts 64" if config.get("analysis_prompts") == 0 else ""
        missing.append(Missing("What happened inside the model", f"{why}. {_rerun(path)}{prompts} adds it."))
    together, problem = read_json(path / "interaction.json")
    if problem:
        missing.append(Missing("How far the weights act together", problem))
    extras, rejected = read_extras(path, results.provenance)
    missing += rejected
    missing += _controls(results)
    beside = _beside(path)
    return RunData(
        path, results, config, inside, values, extras, beside, tuple(missing), complete, together=together
    )


def _beside(path: Path) -> Architectures | None:
    """The same study on other architectures, where the run lies among them and at least one other is finished."""
    folder = above(path)
    if folder is None:
        return None
    try:
        architectures = read(folder)
    except ValueError:
        return None
    return architectures if len(architectures.outcomes) > 1 else None


def _results(path: Path) -> tuple[Results, bool]:
    """The results, and whether the study came to its end."""
    if (path / "results.json").is_file():
        return Results.load(path), True
    states = _finished(path)
    if not states or states[0][0].mask != BASELINE:
        raise ValueError(
            f"{path} has no results.json and no measured baseline, so there is nothing to report. "
            f"Run a study into it first: tomfisher run --output_path {path} ..."
        )
    return Results(tuple(row for rows in states for row in rows)), False


def _finished(path: Path) -> list[list[Row]]:
    """The measured states of a study without results, the untouched model first; damaged ones are left out."""
    states = []
    for file in sorted((path / "points").glob("*.json")):
        try:
            states.append(rows_of(text_files.read_json(file)["point"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return sorted(filter(None, states), key=lambda rows: (rows[0].kappa, rows[0].mask, rows[0].seed or 0))


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = text_files.read_yaml(path / "config.yaml")
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _interrupted(results: Results, config: dict[str, Any]) -> Missing:
    planned = config.get("kappas") or []
    measured = sum(1 for _ in grouped(results.rows)) - 1
    return Missing(
        "The end of the study",
        f"Unfinished: run the same command to resume. {measured} points are measured, at "
        f"{len(results.kappas)} of {len(planned) or 'the planned'} values of kappa; the verdict covers these alone.",
    )


def _controls(results: Results) -> list[Missing]:
    """Values of κ at which a mask of the sweep or one of its controls was not measured."""
    gaps = []
    for mask, what in (
        (TASK_CONTROL, "Task-minus-control masks"),
        (CONTROL_ONLY, "Control-only masks"),
        (RANDOM, "Random masks"),
    ):
        absent = [f"{kappa:g}" for kappa in results.kappas if not results.at(kappa, mask)]
        if absent:
            everywhere = len(absent) == len(results.kappas)
            where = "at any kappa" if everywhere else f"at kappa = {', '.join(absent)}"
            gaps.append(Missing(what, f"None was measured {where}, so there is no comparison with them."))
    return gaps


def _rerun(path: Path) -> str:
    """The command that goes on with the study in this folder, also where the folder was moved."""
    written = _settings(path).get("output_path")
    moved = written is not None and os.path.realpath(str(written)) != os.path.realpath(path)
    return f"tomfisher run --config {path / 'config.yaml'}{f' --output_path {path}' if moved else ''}"
