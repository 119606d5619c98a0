"""`tomfisher export`: what is here in the form that another tool reads."""

from __future__ import annotations

import argparse
from typing import Any

from tomfisher.cli.common import add_command, add_overwrite, print_wrapped
from tomfisher.files import refuse_existing


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "export",
        "write a Fisher store in the form that another tool reads",
        "squeezellm: a copy of the model in float32 whose weights are their Fisher diagonal, which SqueezeLLM takes\n"
        "as its gradient checkpoint for weighted k-means quantisation (arXiv 2306.07629).",
        (
            "tomfisher fisher --model ./my-llama --texts calibration.jsonl --output_path stores/calibration",
            "tomfisher export squeezellm --model ./my-llama --store stores/calibration --output_path squares",
        ),
    )
    parser.add_argument("what", choices=("squeezellm",), help="for which tool")
    parser.add_argument("--model", required=True, help="the model that the store is of: a folder or a hub id")
    parser.add_argument("--store", required=True, help="its Fisher store (tomfisher fisher)")
    parser.add_argument("--output_path", required=True, help="folder to write")
    add_overwrite(parser)
    parser.set_defaults(execute=run, output_is_replaced=True)


def run(args: argparse.Namespace) -> int:
    """Write the export."""
    from tomfisher.fisher.squeezellm import export_squeezellm

    refuse_existing(args.output_path, args.overwrite)
    done = export_squeezellm(args.model, args.store, args.output_path)
    print_wrapped(
        [
            f"{args.output_path}: F in place of {len(done.filled)} tensors, {len(done.zero)} that the store does not "
            "hold are zero. Next, in SqueezeLLM's folder quantization: python chunk_models.py --model "
            f"{args.output_path} --output_path gradient-chunks --model_type llama"
        ]
    )
    return 0
