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
    setting,
)
from tomfisher.files import check_writable, refuse_existing
from tomfisher.studies.parsing import check_kappa

if TYPE_CHECKING:
    from tomfisher.masks import SparseMask


HELPS = {
    "task_store": "Fisher store to select from, such as RUN/fisher/task (tomfisher fisher)",
    "control_store": "Fisher store whose selection is taken away, such as RUN/fisher/control [none]",
    "control_kappa": "fraction of the control's ranking that is taken away [that of the mask]",
    "criterion": "ratio: rank by F_task / (F_control + a quantile of it) instead of taking the control's away",
    "kappas": "several fractions, comma-separated, in one reading of the stores; a file for each",
    "seed": "seed of --random_like [0]",
}


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "mask",
        "choose the top entries of a Fisher store, minus those of another",
        "Select the kappa fraction of each tensor with the largest Fisher values, take away what the control's\n"
        "store selects at the same kappa, and write the positions as a safetensors file.",
        (
            "tomfisher mask --task_store runs/demo-testbed/fisher/task \\\n"
            "      --control_store runs/demo-testbed/fisher/control --kappa 3e-3 --output_path tom.safetensors",
            "tomfisher mask --task_store my/fisher --kappas 1e-5,1e-4 --scope model --output_path top.safetensors",
            "tomfisher mask --task_store stores/task --control_store stores/control --kappa 3e-2 \\\n"
            "      --control_kappa 0.1 --output_path specific.safetensors",
            "tomfisher mask --random_like tom.safetensors --seed 1 --output_path random1.safetensors",
        ),
    )
    add_settings(parser, "task_store", "control_store", "scope", "compat", "seed", helps=HELPS)
    add_settings(parser, "control_kappa", "criterion", "ratio_quantile", helps=HELPS)
    fractions = parser.add_mutually_exclusive_group()
    fractions.add_argument(
        "--kappa", type=kappa, help="fraction of the entries, between 0 and 1, such as 1e-4"
    )
    add_settings(fractions, "kappas", helps=HELPS)
    parser.add_argument(
        "--random_like", metavar="MASK", help="draw at random as many entries per tensor as MASK has"
    )
    parser.add_argument(
        "--output_path",
        required=True,
        help="the mask file to write, such as tom.safetensors; with --kappas tom-0.001.safetensors and so on",
    )
    add_overwrite(parser)
    parser.set_defaults(execute=run, output_is_file=True)


def run(args: argparse.Namespace) -> int:
    """Make the masks, write them, print their sizes."""
    fractions = _fractions(args)
    paths = {fraction: _path(args, fraction) for fraction in fractions or (None,)}
    for path in paths.values():
        check_writable(path)
        refuse_existing(path, args.overwrite)
    masks = {None: _random(args)} if args.random_like else _selected(args, fractions)
    for fraction, mask in masks.items():
        if mask.nnz == 0:
            raise ValueError(f"The mask would be empty, so none is written: {_why_empty(args, fraction)}")
    for fraction, mask in masks.items():
        mask.save(paths[fraction])
    for fraction, mask in masks.items():
        used = sum(count > 0 for count in mask.counts().values())
        print(
            f"{paths[fraction]}: {mask.nnz} of {mask.numel} entries ({mask.density:.3g}), "
            f"in {used} of {len(mask)} tensors"
        )
    return 0


def _fractions(args: argparse.Namespace) -> tuple[float, ...]:
    """The kappas asked for; none with --random_like."""
    if args.kappa is not None:
        return (args.kappa,)
    return (
        tuple(check_kappa(k, "every kappa") for k in setting(args, "kappas"))
        if hasattr(args, "kappas")
        else ()
    )


def _path(args: argparse.Namespace, fraction: float | None) -> Path:
    """--output_path; with --kappas, kappa stands in the name."""
    path = Path(args.output_path)
    return path.with_name(f"{path.stem}-{fraction!r}{path.suffix}") if hasattr(args, "kappas") else path


def _random(args: argparse.Namespace) -> SparseMask:
    from tomfisher.masks import SparseMask

    if args.kappa is not None or hasattr(args, "kappas") or hasattr(args, "task_store"):
        raise ValueError(
            "--random_like takes its counts from a mask; leave out --kappa, --kappas and the stores."
        )
    return SparseMask.load(args.random_like).random_like(setting(args, "seed"))


def _why_empty(args: argparse.Namespace, fraction: float | None) -> str:
    if args.random_like:
        return f"{args.random_like} has no entries."
    if setting(args, "control_store") is None:
        return (
            f"kappa {fraction:g} of the entries is less than one entry anywhere, or no entry is above zero. Give a "
            "larger one, or look at the store: tomfisher ls."
        )
    return (
        f"every entry that the task selects at kappa {fraction:g} is selected by the control too, or kappa is less "
        "than one entry anywhere. Give another one."
    )


def _selected(args: argparse.Namespace, fractions: tuple[float, ...]) -> dict[float, SparseMask]:
    from tomfisher.studies.store_masks import store_masks

    task, control = setting(args, "task_store"), setting(args, "control_store")
    if task is None or not fractions:
        raise ValueError(
            "mask needs --task_store and --kappa or --kappas (or --random_like MASK). See tomfisher mask --help."
        )
    protected, by = setting(args, "control_kappa") or (None,), setting(args, "criterion") or (None,)
    if len(protected) > 1 or len(by) > 1:
        raise ValueError("mask takes one --control_kappa and one --criterion; tomfisher run takes several.")
    if protected[0] is not None:
        check_kappa(protected[0], "control_kappa")
        if control is None:
            raise ValueError("--control_kappa is a share of --control_store, which is not given.")
    return store_masks(
        task,
        control,
        fractions,
        setting(args, "scope"),
        setting(args, "compat"),
        protected[0],
        by[0],
        setting(args, "ratio_quantile"),
    )
