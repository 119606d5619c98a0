"""`tomfisher testbed train`: a small model from scratch, or the ability for a large one, on a CPU."""

from __future__ import annotations

import argparse
from typing import Any

from tomfisher.cli.common import add_command


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "testbed",
        "train models that answer false-belief questions",
        "The testbed: models of less than a million parameters that learn a small false-belief language from\n"
        "scratch. Trained weights ship with tomfisher as testbed-llama and, second-order stories included, as\n"
        "testbed2-NAME (tomfisher ls models); this reproduces them. With --model a language model is taught the\n"
        "ability instead: an adapter (LoRA) for stories in English.",
        (
            "tomfisher testbed train",
            "tomfisher testbed train --architecture mamba --second_order --threads 1",
        ),
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    train = add_command(
        actions,
        "train",
        "train on the CPU",
        "Train, measure on held-out stories, and write a folder that load_model loads.",
        (
            "tomfisher testbed train --threads 2",
            "tomfisher testbed train --model smollm2-135m --output_path runs/smollm2-135m-tom",
            "tomfisher run --model runs/testbed-llama --task testbed --control testbed",
        ),
    )
    train.add_argument(
        "--output_path", help="new folder [runs/testbed-llama, runs/testbed2-ARCHITECTURE or runs/MODEL-tom]"
    )
    train.add_argument("--model", metavar="NAME", help="train an adapter of this model instead (needs peft)")
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
    given = {name: getattr(args, name) for name in ("steps", "seed") if getattr(args, name) is not None}
    return _from_scratch(args, given) if args.model is None else _adapter(args, given)


def _from_scratch(args: argparse.Namespace, given: dict[str, int]) -> int:
    from tomfisher.files import check_writable
    from tomfisher.testbed.recipe import Recipe
    from tomfisher.testbed.train import train

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


def _adapter(args: argparse.Namespace, given: dict[str, int]) -> int:
    from pathlib import Path

    from tomfisher.files import check_writable
    from tomfisher.finetune.adapter import AdapterRecipe, train_adapter

    if args.second_order or args.architecture != "llama":
        raise ValueError(
            "--model takes an existing model, so --architecture and --second_order have no meaning. Leave them out."
        )
    output_path = args.output_path or f"runs/{Path(args.model).name}-tom"
    check_writable(output_path, folder=True, replaced=True)
    record = train_adapter(args.model, output_path, AdapterRecipe(**given), threads=args.threads)
    before, after = record["result"]["before"], record["result"]["after"]
    print(f"{'':<32} before   after")
    for group, accuracy in after["accuracy"].items():
        print(f"{group:<32} {before['accuracy'][group]:>6.3f}  {accuracy:>6.3f}")
    print(f"{'perplexity of other text':<32} {before['perplexity']:>6.2f}  {after['perplexity']:>6.2f}")
    print(f"{record['result']['seconds']:.0f} s, written to {output_path}")
    return 0
