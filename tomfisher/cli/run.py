"""`tomfisher run`: the whole study."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tomfisher.cli.common import (
    add_command,
    add_overwrite,
    add_settings,
    given_settings,
    note_own_texts,
    print_wrapped,
    refuse_idle,
)


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "run",
        "the whole study: Fisher, masks, sweep, random controls, verdict",
        "Take the Fisher diagonals of a task and of general text, perturb the weights that matter to the task but\n"
        "not to the text, and measure what breaks. Finished parts stay in the run folder: the same command\n"
        "resumes a stopped run. Settings: command line > --config > --preset > defaults.",
        (
            "tomfisher run --preset demo-testbed",
            "tomfisher run --preset demo-smollm2 --output_path runs/mine",
            "tomfisher run --preset architectures",
            "tomfisher run --model HuggingFaceTB/SmolLM2-360M --kappas 1e-5,1e-4 --limit 160",
            "tomfisher run --preset demo-testbed --control_kappa 0.1,0.3 --criterion ratio --output_path runs/frontier",
            "tomfisher run --preset demo-testbed --criterion magnitude,taylor,fill,wanda --output_path runs/criteria",
            "tomfisher run --config runs/demo-testbed/config.yaml --interaction",
            "tomfisher run --model ./my-model --task my_task.jsonl --control my_text.txt",
            "tomfisher run --config runs/demo-testbed/config.yaml",
            "torchrun --nproc_per_node 2 -m tomfisher run --preset demo-smollm2",
        ),
    )
    parser.add_argument(
        "--config", "-C", metavar="YAML", help="read settings from this file, such as RUN/config.yaml"
    )
    parser.add_argument("--preset", help="a complete named study (tomfisher ls presets)")
    add_settings(parser)
    add_overwrite(parser)
    parser.set_defaults(execute=run, saves=True, output_is_cleared=True, several=True)


def run(args: argparse.Namespace) -> int:
    """Run or resume the study and print table, verdict and where the results lie."""
    from tomfisher.studies.config import Config
    from tomfisher.studies.presets import ARCHITECTURES

    if args.preset == ARCHITECTURES:
        return _run_architectures(args)
    config = Config.resolve(given_settings(args), args.config, args.preset)
    refuse_idle(config, given_settings(args))
    if args.config is None and args.preset is None:
        note_own_texts(config.model, given_settings(args))
    return run_study(config, args.overwrite)


def run_study(config: Any, overwrite: bool) -> int:
    """Run a study, write its report and print what it found."""
    from tomfisher import report
    from tomfisher.results import judge
    from tomfisher.results.frontier import criteria_table, frontier_table, is_frontier
    from tomfisher.results.interaction import FILE as INTERACTION
    from tomfisher.results.interaction import study_table
    from tomfisher.results.sweep import sweep_table
    from tomfisher.runtime import ranks
    from tomfisher.studies import Experiment
    from tomfisher.text_files import read_json

    team = ranks.current()
    results = Experiment(config, overwrite=overwrite).run()
    try:
        page = team.first("the report", lambda: str(report.write(config.output_path)))
    finally:  # the results are there whether or not there can be a report
        print(f"{config.model}: {config.task} against {config.control}\n")
        print(f"{sweep_table(results).text()}\n")
        if is_frontier(results):
            print(f"{frontier_table(results).text()}\n\n{criteria_table(results).text()}\n")
        if config.interaction:
            together = study_table(read_json(Path(config.output_path).expanduser() / INTERACTION))
            print_wrapped([together.caption])
            print(f"{together.text()}\n")
        print_wrapped(judge(results).sentences)
        print(f"\nResults: {config.output_path}/results.json, results.csv, verdict.txt")
    print(f"Report:  {page}")
    print(f"Again:   tomfisher run --config {config.output_path}/config.yaml")
    return 0


def _run_architectures(args: argparse.Namespace) -> int:
    """Run the five studies of the preset, write the reports, one of each run and one of all, and print their table."""
    from tomfisher import report
    from tomfisher.results.architecture_table import render
    from tomfisher.results.equal_kappa import sentences
    from tomfisher.runtime import ranks
    from tomfisher.studies.architectures import run_architectures

    if ranks.current().size > 1:
        raise ValueError("The preset architectures works in one process. Start it without torchrun.")
    folder, outcomes = run_architectures(given_settings(args), args.config, args.overwrite)
    for outcome in outcomes:
        report.write(folder / outcome.architecture)
    page = report.write(folder)
    print(f"{render(outcomes)}\n")
    print_wrapped(
        f"{outcome.title}: {outcome.verdict.sentences[1 if outcome.found else -1]}" for outcome in outcomes
    )
    print()
    print_wrapped(sentences(outcomes))
    print(f"\nResults: {folder}/architectures.json, .csv, .txt, and a run folder for each architecture")
    print(f"Report:  {page}, and report.html in each run folder")
    return 0
