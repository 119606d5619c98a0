"""`tomfisher finetune`: train only the masked entries, beside random entries and LoRA."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tomfisher.cli.common import (
    MODEL_FIELDS,
    PERPLEXITY_FIELDS,
    TASK_FIELDS,
    add_command,
    add_overwrite,
    add_settings,
    given_settings,
    kappa,
    note_own_texts,
    print_wrapped,
    refuse_idle,
    report_line,
)
from tomfisher.progress import note

RUN_FIELDS = (*MODEL_FIELDS, *TASK_FIELDS, *PERPLEXITY_FIELDS, "max_length", "supervise", "fill", "seed")


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "finetune",
        "train only the masked weights, beside random ones and LoRA",
        "Train only the masked entries of a model on the task's Fisher stories, every other bit frozen, and measure\n"
        "on other stories: does the ability rise, at what cost in perplexity? The same is done with as many random\n"
        "entries and with LoRA of as many parameters. Learning rates are chosen on stories of neither part.\n"
        "With --damage, weights are overwritten first: can the training restore what they did?\n"
        "The Fisher stories of false-belief tasks have no controls, so look at the other conditions too: a model that\n"
        "learns to treat everything as a false belief shows there. --balanced trains on every condition, --train\n"
        "on stories of your own.",
        (
            "tomfisher finetune --model smollm2-135m --task false-belief --mask m.safetensors --steps 100 \\\n"
            "      --output_path runs/ft",
            "tomfisher finetune runs/demo-testbed --kappa 0.03",
            "tomfisher finetune runs/demo-testbed --kappa 0.03 --balanced \\\n"
            "      --damage runs/demo-testbed/masks/task-control-0.03.safetensors --output_path runs/restored",
        ),
    )
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="run folder: its settings, and its mask at --kappa"
    )
    parser.add_argument("--mask", help="mask file: the entries to train")
    parser.add_argument("--kappa", type=kappa, help="with RUN: train its task-control mask of this kappa")
    parser.add_argument("--damage", help="mask file: overwrite these entries with --fill before the training")
    stories = parser.add_mutually_exclusive_group()
    stories.add_argument(
        "--train", metavar="FILE", help="JSON/JSONL file of training stories [the task's Fisher stories]"
    )
    stories.add_argument(
        "--balanced",
        action="store_true",
        help="train on every condition of the Fisher pool, not on false belief alone",
    )
    add_settings(parser, *RUN_FIELDS, "batch_size")
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps of every training [100]")
    parser.add_argument(
        "--learning_rates", default="1e-4,1e-3,1e-2", help="grid to choose from [1e-4,1e-3,1e-2]"
    )
    parser.add_argument("--train_batch_size", type=int, default=8, help="samples per step [8]")
    parser.add_argument("--n_train", type=int, default=80, help="training stories [80]")
    parser.add_argument(
        "--n_validation", type=int, default=20, help="stories that choose the learning rate [20]"
    )
    parser.add_argument("--random_masks", type=int, default=3, help="masks of random entries [3]")
    parser.add_argument("--no_lora", action="store_true", help="leave LoRA (package peft) out")
    parser.add_argument("--dtype", default="fp32", help="fp32, bf16, fp16 [fp32]")
    parser.add_argument("--output_path", help="folder for finetune.json, .csv and the delta [RUN/finetune]")
    add_overwrite(parser)
    parser.set_defaults(execute=run, saves=True)


def run(args: argparse.Namespace) -> int:
    """Train, measure, write the files and print the tables."""
    from tomfisher.files import check_writable
    from tomfisher.studies.config import Config
    from tomfisher.studies.finetune_run import finetune_run

    plan = _plan(args)
    folder = _output(args)
    check_writable(folder, folder=True)
    settings = _settings(args)
    config = Config.from_dict({**settings, "n_task": _stories(args)})
    refuse_idle(config, given_settings(args))
    note_own_texts(config.model, settings)
    results = finetune_run(
        config,
        plan,
        _mask_path(args),
        folder,
        args.n_train,
        args.n_validation,
        args.train,
        args.balanced,
        args.damage,
        args.dtype,
        args.overwrite,
        recorded=RUN_FIELDS,
        say=note,
    )
    _print(results, folder)
    if args.run is not None:
        print(report_line(args.run, folder, "finetune"))
    return 0


def _output(args: argparse.Namespace) -> Path:
    if args.output_path is None and args.run is None:
        raise ValueError("Give --output_path, a folder for the results, or a run folder.")
    return Path(args.output_path or Path(args.run) / "finetune")


def _plan(args: argparse.Namespace) -> Any:
    from tomfisher.studies.finetune import Plan

    try:
        rates = tuple(sorted({float(part) for part in args.learning_rates.split(",") if part.strip()}))
    except ValueError:
        raise ValueError(
            f"--learning_rates must be numbers such as 1e-4,1e-3, got {args.learning_rates!r}."
        ) from None
    seed = int(getattr(args, "seed", 0))
    return Plan(args.steps, rates, args.train_batch_size, args.random_masks, not args.no_lora, seed)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The study's settings: the command line over those of the run folder."""
    given = given_settings(args)
    given.pop("output_path", None)
    if args.run is None:
        if "model" not in given:
            raise ValueError("No model is given. Use --model, or a run folder.")
        return given
    from tomfisher.studies.of_run import settings_of_run

    return settings_of_run(args.run, RUN_FIELDS, given)


def _mask_path(args: argparse.Namespace) -> Path:
    if (args.mask is None) == (args.kappa is None) or (args.kappa is not None and args.run is None):
        raise ValueError(
            "Give either --mask FILE, or a run folder and --kappa, to say which entries are trained."
        )
    if args.mask is not None:
        return Path(args.mask)
    from tomfisher.studies.of_run import mask_of_run

    return mask_of_run(args.run, args.kappa)


def _stories(args: argparse.Namespace) -> int:
    if args.n_train < 1 or args.n_validation < 1:
        raise ValueError(
            f"--n_train and --n_validation must be at least 1, got {args.n_train} and {args.n_validation}."
        )
    return int(args.n_train + args.n_validation)


def _print(results: Any, folder: Path) -> None:
    from tomfisher.results.trainings import condition_table, sentences, training_table
    from tomfisher.studies.finetune import MASKED

    print(f"{training_table(results).text()}\n\n{condition_table(results)}\n")
    print_wrapped(sentences(results))
    delta = "" if MASKED in results.left_out else ", delta.safetensors"
    print(f"\nWritten: {folder}/finetune.json, finetune.csv{delta}")
