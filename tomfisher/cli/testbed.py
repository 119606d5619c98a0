"""`tomfisher testbed train`: the testbed model from scratch, in a few minutes on a CPU."""

from __future__ import annotations

import argparse
from typing import Any

from tomfisher.cli.common import add_command


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "testbed",
        "train the small false-belief Llama from scratch",
        "The testbed: a Llama of 0.7 million parameters that learns a small false-belief language from scratch. "
        "Trained weights ship with tomfisher under the name testbed-llama; this reproduces them.",
        ("tomfisher testbed train", "tomfisher testbed train --seed 1 --output_path runs/testbed-seed1"),
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    train = add_command(
        actions,
        "train",
        "train from scratch on the CPU",
        "Train, measure on held-out stories, and write a folder that transformers loads.",
        ("tomfisher testbed train --threads 2", "tomfisher run --model runs/testbed-llama --task testbed"),
    )
    train.add_argument("--output_path", default="runs/testbed-llama", help="new folder [runs/testbed-llama]")
    train.add_argument("--steps", type=int, help="optimiser steps [the shipped model's]")
    train.add_argument("--seed", type=int, help="of weights and training text [the shipped model's]")
    train.add_argument("--threads", type=int, help="CPU threads [torch's choice]")
    train.set_defaults(execute=run)


def run(args: argparse.Namespace) -> int:
    """Train and say what came out."""
    from tomfisher.testbed.recipe import Recipe
    from tomfisher.testbed.train import train

    given = {name: getattr(args, name) for name in ("steps", "seed") if getattr(args, name) is not None}
    record = train(args.output_path, Recipe(**given), threads=args.threads)
    result = record["result"]
    for group, accuracy in result["accuracy"].items():
        print(f"{group:<32} {accuracy:.3f}")
    print(f"perplexity of general text       {result['perplexity']:.3f}")
    print(f"{result['parameters']:,} parameters, {result['seconds']:.0f} s, written to {args.output_path}")
    return 0
