"""`tomfisher sweep`: masks, sweep and controls from Fisher stores that exist already."""

from __future__ import annotations

import argparse
from typing import Any

from tomfisher.cli.common import (
    FIELDS,
    add_command,
    add_overwrite,
    add_settings,
    given_settings,
    note_own_texts,
    print_wrapped,
    refuse_idle,
)

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
        "The same as `tomfisher run`, without taking the Fisher diagonals again; resumable too.\n"
        "Several fills, comma-separated, make a grid: one study each below --output_path, and one table that says\n"
        "where anything falls or rises.",
        (
            "tomfisher sweep --model smollm2-135m --task_store runs/demo-smollm2/fisher/task \\\n"
            "      --control_store runs/demo-smollm2/fisher/control --kappas 3e-5,3e-4 --output_path runs/finer",
            "tomfisher sweep --model testbed-llama --task testbed --control testbed --fill zero \\\n"
            "      --task_store runs/demo-testbed/fisher/task --control_store runs/demo-testbed/fisher/control \\\n"
            "      --kappas 1e-3,3e-3 --output_path runs/zero",
            "tomfisher sweep --model testbed-llama --task testbed --control testbed \\\n"
            "      --fill scale:0,scale:0.5,scale:1.5,scale:2 --kappas 1e-3,1e-2 \\\n"
            "      --task_store runs/demo-testbed/fisher/task --control_store runs/demo-testbed/fisher/control \\\n"
            "      --output_path runs/scale",
        ),
    )
    add_settings(
        parser,
        *(name for name in FIELDS if name not in FISHER_FIELDS),
        required=("model", "task_store", "control_store"),
    )
    add_overwrite(parser)
    parser.set_defaults(execute=run, saves=True, output_is_cleared=True)


def run(args: argparse.Namespace) -> int:
    """Run or resume the sweep and print table, verdict and where the results lie."""
    from tomfisher.cli.run import run_study
    from tomfisher.studies.config import Config

    settings = given_settings(args)
    note_own_texts(str(settings["model"]), settings)
    refuse_idle(Config.resolve(settings | {"fill": "mean"}), settings)
    fills = [part.strip() for part in str(settings.get("fill", "")).split(",") if part.strip()]
    if len(fills) > 1:
        return _run_grid(settings, fills, args.overwrite)
    return run_study(Config.resolve(settings), args.overwrite)


def _run_grid(settings: dict[str, Any], fills: list[str], overwrite: bool) -> int:
    from tomfisher.results.fill_grid import grid_table
    from tomfisher.studies.config import Config
    from tomfisher.studies.fill_grid import run_grid

    grid = run_grid(settings, fills, overwrite)
    folder = Config.from_dict({**settings, "fill": fills[0]}).output_path
    print(f"{settings['model']}: fills {', '.join(fills)}\n\n{grid_table(grid).text()}\n")
    print_wrapped(grid.conclusions)
    print(f"\nResults: {folder}/grid.json, grid.csv, and a run folder per fill")
    print(
        "Report:  tomfisher report RUN shows the grid where --output_path is RUN/grid, of the run RUN of the stores"
    )
    return 0
