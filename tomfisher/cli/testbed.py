"""`tomfisher testbed train`: a testbed model from scratch, in a few minutes on a CPU."""

from __future__ import annotations

import argparse
from typing import Any

from tomfisher.cli.common import add_command


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "testbed",
        "train small false-belief models from scratch",
        "The testbed: models of less than a million parameters that learn a small false-belief language from\n"
        "scratch. Trained weights ship with tomfisher as testbed-llama and, second-order stories included, as\n"
        "testbed2-NAME (tomfisher ls models); this reproduces them.",
        (
            "tomfisher testbed train",
            "tomfisher testbed train --architecture mamba --second_order --threads 1",
        ),
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    train = add_command(
        actions,
        "train",
        "train from scratch on the CPU",
        "Train, measure on held-out stories, and write a folder that transformers loads.",
        (
            "tomfisher testbed train --threads 2",
            "tomfisher run --model runs/testbed-llama --task testbed --control testbed",
        ),
    )
    train.add_argument("--output_path", help="new folder [runs/testbed-llama, or runs/testbed2-ARCHITECTURE]")
    train.add_argument(
        "--architecture", default="llama", metavar="NAME", help="llama, qwen2, mpt, mamba or jamba [llama]"
    )
    train.add_argument(
        "--second_order", action="store_true", help="tell second-order stories too, as for testbed2-NAME"
    )
    train.add_argument("--steps", type=int, help="optimiser steps [the shipped model's]")
    train.add_argument("--seed", type=int, help="of weights and training text [the shipped model's]")
    train.add_argument("--threads", type=int, help="CPU threads [torch's choice]")
    train.set_defaults(execute=run, output_is_replaced=True, saves=True)


def run(args: argparse.Namespace) -> int:
    """Train and say what came out."""
    from tomfisher.files import check_writable
    from tomfisher.testbed.recipe import Recipe
    from tomfisher.testbed.train import train

    given = {name: getattr(args, name) for name in ("steps", "seed") if getattr(args, name) is not None}
    recipe = Recipe.of(args.architecture, args.second_order, **given)
    generation = "testbed2" if args.second_order else "testbed"
    output_path = args.output_path or f"runs/{generation}-{args.architecture}"
    check_writable(output_path, folder=True, replaced=True)
    record = train(output_path, recipe, threads=args.threads)
    result = record["result"]
    for group, accuracy in result["accuracy"].items():
        print(f"{group:<32} {accuracy:.3f}")
    print(f"perplexity of general text       {result['perplexity']:.3f}")
    print(f"{result['parameters']:,} parameters, {result['seconds']:.0f} s, written to {output_path}")
    return 0
