"""`tomfisher merge`: fine-tuned models of one base made one, with their Fisher diagonals as weights."""

from __future__ import annotations

import argparse
from typing import Any

from tomfisher.cli.common import add_command, add_overwrite, print_wrapped
from tomfisher.files import refuse_existing


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "merge",
        "merge fine-tuned models, weighted by their Fisher diagonals",
        "Average models that were fine-tuned from one: a weight counts as much as the data of its model depend on it\n"
        "(Matena and Raffel, arXiv 2111.09832). Weights that no store holds are averaged plainly, as are all without\n"
        "--stores. Files are read and written part by part, so that models larger than memory can be merged.\n"
        "\n"
        "The result is a folder that transformers loads, with the first model's config, tokenizer, dtypes and files,\n"
        "and merge.json, which says what was merged.",
        (
            "tomfisher fisher --model ./maths --texts maths.jsonl --output_path stores/maths",
            "tomfisher fisher --model ./law --texts law.jsonl --output_path stores/law",
            "tomfisher merge --models ./maths ./law --stores stores/maths stores/law --output_path merged",
            "tomfisher merge --models ./maths ./law --stores stores/maths stores/law --coefficients 2,1 \\\n"
            "      --floor 1e-10 --output_path merged",
            "tomfisher merge --models ./maths ./law --output_path averaged",
        ),
    )
    parser.add_argument(
        "--models", nargs="+", required=True, help="two or more: folders with safetensors files, or hub ids"
    )
    parser.add_argument(
        "--stores", nargs="+", help="a Fisher store of each model (tomfisher fisher), in the same order"
    )
    parser.add_argument(
        "--coefficients", type=_numbers, metavar="X,X", help="how much each model counts besides [1 each]"
    )
    parser.add_argument(
        "--floor",
        type=float,
        default=0.0,
        help="added to F, a mean over samples; larger is nearer to the plain average [0]",
    )
    parser.add_argument("--output_path", required=True, help="folder to write")
    add_overwrite(parser)
    parser.set_defaults(execute=run, output_is_replaced=True)


def run(args: argparse.Namespace) -> int:
    """Write the merged model."""
    from tomfisher.merging import merge

    refuse_existing(args.output_path, args.overwrite)
    done = merge(args.models, args.stores, args.output_path, args.coefficients, args.floor)
    plainly = f", {len(done.plainly)} plainly" if done.plainly else ""
    print_wrapped(
        [
            f"{args.output_path}: {len(args.models)} models merged, {len(done.by_fisher)} tensors by Fisher{plainly}"
        ]
    )
    return 0


def _numbers(text: str) -> list[float]:
    """The argparse type of --coefficients: numbers with commas between them."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers such as 2,1, got {text!r}.") from None
