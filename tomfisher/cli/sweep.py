"""`tomfisher sweep`: masks, sweep and controls from Fisher stores that exist already."""

from __future__ import annotations

import argparse
from typing import Any

from tomfisher.cli.common import add_command, add_overwrite, add_settings, given_settings

FISHER_FIELDS = (
    "n_task",
    "n_control",
    "control_length",
    "max_length",
    "supervise",
    "labels",
    "reduction",
    "params",
)


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "sweep",
        "the study from existing Fisher stores, over a list of kappas",
        "Measure task-control, control-only and random masks at every kappa, from two Fisher stores.\n"
        "The same as `tomfisher run`, without taking the Fisher diagonals again; resumable too.",
        (
            "tomfisher sweep --model smollm2-135m --task_store runs/demo-smollm2/fisher/task \\\n"
            "      --control_store runs/demo-smollm2/fisher/control --kappas 3e-5,3e-4 --output_path runs/finer",
            "tomfisher sweep --model testbed-llama --task testbed --control testbed --fill zero \\\n"
            "      --task_store runs/demo-testbed/fisher/task --control_store runs/demo-testbed/fisher/control \\\n"
            "      --kappas 1e-3,3e-3 --output_path runs/zero",
        ),
    )
    add_settings(parser, *_sweep_fields(), required=("model", "task_store", "control_store"))
    add_overwrite(parser)
    parser.set_defaults(execute=run)


def run(args: argparse.Namespace) -> int:
    """Run or resume the sweep and print table, verdict and where the results lie."""
    from tomfisher.cli.run import run_study
    from tomfisher.experiment.config import Config

    return run_study(Config.resolve(given_settings(args)), args.overwrite)


def _sweep_fields() -> tuple[str, ...]:
    import dataclasses

    from tomfisher.experiment.config import Config

    return tuple(field.name for field in dataclasses.fields(Config) if field.name not in FISHER_FIELDS)
