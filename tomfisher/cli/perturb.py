"""`tomfisher perturb`: a perturbed copy of a model, for other tools."""

from __future__ import annotations

import argparse
import json
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
from tomfisher.files import refuse_existing, refuse_foreign
from tomfisher.text_files import read_json

RECORD = "perturbation.json"


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
    from tomfisher.files import atomic_path, sha256_of_file
    from tomfisher.masks import SparseMask
    from tomfisher.models.quiet import quiet_unless_terminal
    from tomfisher.studies.config import parse_fill

    target = Path(args.output_path)
    refuse_existing(target, args.overwrite)
    _check_target(target)
    mask = SparseMask.load(args.mask)
    fill = parse_fill(setting(args, "fill"))
    loaded = load_named_model(args, args.dtype)
    perturbation = perturbation_of(args, loaded, mask).apply()
    record = {
        "model": loaded.identity,
        "mask": {"file": args.mask, "sha256": sha256_of_file(args.mask), **mask.describe()},
        "fill": fill,
        "compat": setting(args, "compat"),
        "seed": setting(args, "seed"),
        "nnz": perturbation.nnz,
    }
    with quiet_unless_terminal(), atomic_path(target) as temporary:
        loaded.model.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
        record["files"] = sorted(file.name for file in temporary.iterdir())
        _check_target(target)
        (temporary / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {args.model} with {perturbation.nnz} weights perturbed (fill {fill})")
    return 0


def _check_target(target: Path) -> None:
    """Refuse to replace a folder that holds more than an earlier perturbed model."""
    record = read_json(target / RECORD) if (target / RECORD).is_file() else {}
    files = record.get("files", []) if isinstance(record, dict) else []
    refuse_foreign(target, RECORD, [RECORD, *files].__contains__, "perturbed model")
