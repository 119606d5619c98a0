"""`tomfisher ls`: what there is to choose from, and what a run folder or a Fisher store holds."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tomfisher.cli.common import add_command

FILLS = {
    "mean": "the mean of the unmasked entries of the same tensor (the paper's, taken exactly)",
    "zero": "0",
    "NUMBER": "that number",
    "noise": "normal draws with the tensor's mean and standard deviation, seeded",
    "scale:FACTOR": "the weight times the factor, which may be above 1",
}
PARAMS = {
    "decoder-linear": "the linear weights of the decoder layers (the paper's set)",
    "attention-qk": "query and key weights",
    "all": "every parameter",
    "GLOB,GLOB": "parameters whose names match, such as '*.mlp.*'",
}


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "ls",
        "list tasks, models, params, fills, presets, a run folder or a Fisher store",
        "List what a name may be, what a run folder holds and how far it got, or how large the values of a Fisher\n"
        "store are: their number, the zeros, the extremes, and how many are above the thresholds of --above.",
        (
            "tomfisher ls",
            "tomfisher ls tasks",
            "tomfisher ls runs/demo-testbed",
            "tomfisher ls runs/demo-testbed/fisher/task --above 1e-6,1e-4",
        ),
    )
    parser.add_argument(
        "what",
        nargs="?",
        help="tasks, models, params, fills, presets, a run folder or a Fisher store [all lists]",
    )
    parser.add_argument(
        "--above", type=_numbers, metavar="X,X", help="count the values of a Fisher store above each of these"
    )
    parser.set_defaults(execute=run)


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    lists = {"tasks": _tasks, "models": _models, "params": lambda: PARAMS, "fills": lambda: FILLS}
    lists["presets"] = _presets
    store = args.what is not None and (Path(args.what) / "fisher.json").is_file()
    if args.above is not None and not store:
        raise ValueError(
            "--above counts the values of a Fisher store; give the store's folder, such as "
            "runs/demo-testbed/fisher/task."
        )
    if store:
        print(_fisher_store(Path(args.what), args.above or []))
    elif args.what is None:
        print("\n\n".join(_block(name, entries()) for name, entries in lists.items()))
    elif args.what in lists:
        print(_block(args.what, lists[args.what]()))
    elif (Path(args.what) / "config.yaml").is_file():
        print(_run_folder(Path(args.what)))
    else:
        raise ValueError(
            f"{args.what!r} is not a run folder (no config.yaml in it), no Fisher store (no fisher.json) and none of "
            f"{', '.join(lists)}. Give one of these, or nothing for all lists."
        )
    return 0


def _tasks() -> dict[str, str]:
    """Names, then the forms that take a file."""
    from tomfisher import tasks

    published = {
        f"{name}:FILE": f"{kind.title}\nFILE: {kind.needs}; {kind.source}; licence: {kind.licence}"
        for name, kind in tasks.formats.FORMATS.items()
    }
    own = "the paper's own formats, or records of prompt, choices and answer"
    return {**tasks.available(), "FILE.json, FILE.jsonl": own, **published}


def _models() -> dict[str, str]:
    from tomfisher.models import builtin

    return builtin.available()


def _presets() -> dict[str, str]:
    from tomfisher.studies.presets import PRESETS

    return {
        name: f"{values['model']}, task {values['task']}, control {values['control']}, {len(values['kappas'])} kappas"
        for name, values in PRESETS.items()
    }


def _block(title: str, entries: Mapping[str, str]) -> str:
    width = max(map(len, entries), default=0)
    below = f"\n{' ' * (width + 4)}"
    lines = (f"  {name.ljust(width)}  {text.replace(chr(10), below)}" for name, text in entries.items())
    return "\n".join([f"{title}:", *lines])


def _run_folder(path: Path) -> str:
    """Settings, progress and, when there are some, results."""
    from tomfisher.results import Results, judge
    from tomfisher.results.sweep import sweep_table
    from tomfisher.studies.run_progress import run_progress

    found = run_progress(path)
    facts = {
        "model": found.config.model,
        "task": found.config.task,
        "control": found.config.control,
        "points": f"{found.measured} of {found.planned} measured",
        "stores": ", ".join(f"fisher/{which}" for which in found.stores) or "none yet",
        "masks": f"{found.masks} in masks/",
    }
    text = _block(str(path), facts)
    if (path / "results.json").is_file():
        results = Results.load(path)
        return f"{text}\n\n{sweep_table(results).text()}\n\n{judge(results)}"
    return f"{text}\n\nResume with: tomfisher run --config {path}/config.yaml --output_path {path}"


def _numbers(text: str) -> list[float]:
    """The argparse type of --above: numbers with commas between them."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if any(map(math.isnan, numbers)):
        raise argparse.ArgumentTypeError(f"must be numbers such as 1e-6,1e-4, got {text!r}.")
    return numbers


def _fisher_store(path: Path, thresholds: list[float]) -> str:
    """How large the values are."""
    from tomfisher.masks import summary
    from tomfisher.results.fisher_sums import fisher_table
    from tomfisher.studies.stores import open_store

    F = open_store(path)
    table = fisher_table(summary(F, thresholds), thresholds)
    return f"{path}: sums over {F.num_samples} samples\n\n{table.text()}"
