"""`tomfisher mask`: from Fisher stores to a mask file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomfisher.cli.common import (
    add_command,
    add_overwrite,
    add_settings,
    kappa,
    refuse_existing,
    setting,
)

if TYPE_CHECKING:
    from tomfisher.masks import SparseMask


HELPS = {
    "task_store": "Fisher store to select from, such as RUN/fisher/task (tomfisher fisher)",
    "control_store": "Fisher store whose selection is taken away, such as RUN/fisher/control [none]",
    "seed": "seed of --random_like [0]",
}


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "mask",
        "choose the top entries of a Fisher store, minus those of another",
        "Select the kappa fraction of each tensor with the largest Fisher values, take away what the control's\n"
        "store selects at the same kappa, and write the positions as one safetensors file.",
        (
            "tomfisher mask --task_store runs/demo-testbed/fisher/task \\\n"
            "      --control_store runs/demo-testbed/fisher/control --kappa 3e-3 --output_path tom.safetensors",
            "tomfisher mask --task_store my/fisher --kappa 1e-4 --scope model --output_path top.safetensors",
            "tomfisher mask --random_like tom.safetensors --seed 1 --output_path random1.safetensors",
        ),
    )
    add_settings(parser, "task_store", "control_store", "scope", "compat", "seed", helps=HELPS)
    parser.add_argument("--kappa", type=kappa, help="fraction of the entries, between 0 and 1, such as 1e-4")
    parser.add_argument(
        "--random_like", metavar="MASK", help="draw at random as many entries per tensor as MASK has"
    )
    parser.add_argument("--output_path", required=True, help="the mask file to write (.safetensors)")
    add_overwrite(parser)
    parser.set_defaults(execute=run, output_is_file=True)


def run(args: argparse.Namespace) -> int:
    """Make the mask, write it, print its size."""
    refuse_existing(args.output_path, args.overwrite)
    mask = _random(args) if args.random_like else _selected(args)
    if mask.nnz == 0:
        raise ValueError(f"The mask would be empty, so none is written: {_why_empty(args)}")
    mask.save(args.output_path)
    used = sum(count > 0 for count in mask.counts().values())
    print(
        f"{args.output_path}: {mask.nnz} of {mask.numel} entries ({mask.density:.3g}), in {used} of {len(mask)} tensors"
    )
    return 0


def _random(args: argparse.Namespace) -> SparseMask:
    from tomfisher.masks import SparseMask

    if args.kappa is not None or hasattr(args, "task_store"):
        raise ValueError("--random_like takes its counts from a mask; leave out --kappa and the stores.")
    return SparseMask.load(args.random_like).random_like(setting(args, "seed"))


def _why_empty(args: argparse.Namespace) -> str:
    if args.random_like:
        return f"{args.random_like} has no entries."
    if setting(args, "control_store") is None:
        return f"kappa {args.kappa:g} of the entries is less than one entry anywhere. Give a larger --kappa."
    return (
        f"every entry that the task selects at kappa {args.kappa:g} is selected by the control too, or kappa is less "
        "than one entry anywhere. Give another --kappa."
    )


def _selected(args: argparse.Namespace) -> SparseMask:
    from tomfisher.experiment.stores import check_pair, open_store
    from tomfisher.masks import difference_masks, top_fraction

    task, control = setting(args, "task_store"), setting(args, "control_store")
    if task is None or args.kappa is None:
        raise ValueError(
            "mask needs --task_store and --kappa (or --random_like MASK). See tomfisher mask --help."
        )
    scope, compat = setting(args, "scope"), setting(args, "compat")
    F = open_store(Path(task))
    if control is None:
        return top_fraction(F, args.kappa, scope, compat)
    G = open_store(Path(control))
    check_pair(F, G)
    return difference_masks(F, G, [args.kappa], scope, compat)[args.kappa]
