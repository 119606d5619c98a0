"""`tomfisher perturb`: a perturbed copy of a model, for other tools."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tomfisher.cli.common import (
    MODEL_FIELDS,
    add_command,
    add_overwrite,
    add_settings,
    load_named_model,
    perturbation_of,
    setting,
)
from tomfisher.files import refuse_existing


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "perturb",
        "write a perturbed copy of a model",
        "Load a model, overwrite the masked weights and save the result as a folder that transformers loads.\n"
        "(The study itself needs no copy: it perturbs in place and undoes.)",
        (
            "tomfisher perturb --model testbed-llama --mask runs/demo-testbed/masks/task-control-0.003.safetensors \\\n"
            "      --output_path perturbed",
            "tomfisher perturb --model ./my-model --mask tom.safetensors --fill zero --dtype bf16 --output_path out",
        ),
    )
    add_settings(parser, *MODEL_FIELDS, "fill", "compat", "seed", required=("model",))
    parser.add_argument("--mask", required=True, help="mask file (tomfisher mask)")
    parser.add_argument("--dtype", default="checkpoint", help="fp32, bf16, fp16 [the checkpoint's own]")
    parser.add_argument("--output_path", required=True, help="folder to write")
    add_overwrite(parser)
    parser.set_defaults(execute=run, output_is_replaced=True)


def run(args: argparse.Namespace) -> int:
    """Write the perturbed model."""
    from tomfisher.masks import SparseMask
    from tomfisher.studies.parsing import parse_fill
    from tomfisher.studies.perturbed_copy import refuse_other, write_perturbed

    target = Path(args.output_path)
    refuse_existing(target, args.overwrite)
    refuse_other(target)
    mask = SparseMask.load(args.mask)
    fill = parse_fill(setting(args, "fill"))
    loaded = load_named_model(args, args.dtype)
    perturbation = perturbation_of(args, loaded, mask)
    settings = {"fill": fill, "compat": setting(args, "compat"), "seed": setting(args, "seed")}
    write_perturbed(target, loaded, perturbation, args.mask, **settings)
    print(f"{target}: {args.model} with {perturbation.nnz} weights perturbed (fill {fill})")
    return 0
