"""`tomfisher bench`: measure against peers, on this machine, now."""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType
from typing import Any

from tomfisher.cli.common import add_command

BENCHMARKS = {
    "fisher": "fisher_diagonal of a whole model against the paper's loop",
}


def add_parser(subparsers: Any) -> None:
    """Register the command and one sub-command per benchmark."""
    parser = add_command(
        subparsers,
        "bench",
        "benchmarks against peers, side by side in one process",
        "Contenders run interleaved on the same inputs; medians, spread, ratios to the peer and to the floor.\n"
        "Machines are noisy: compare ratios, not seconds.",
        (
            "tomfisher bench fisher",
            "tomfisher bench fisher --model testbed-llama --rounds 2 --output_path fisher.json",
        ),
    )
    names = parser.add_subparsers(title="benchmarks", metavar="NAME", required=True)
    for name, what in BENCHMARKS.items():
        command = names.add_parser(name, help=what, description=what)
        command.add_argument("--output_path", help="write the record as JSON")
        command.set_defaults(execute=run, benchmark=name)
        if name == "fisher":
            _fisher_arguments(command)


def _fisher_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m", help="model [smollm2-135m]")
    parser.add_argument("--samples", type=int, default=100, help="samples per pass [100]")
    parser.add_argument("--length", type=int, default=128, help="tokens per sample [128]")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds [3]")
    parser.add_argument("--tokens_per_batch", default="auto", help="tomfisher's batch budget [auto]")
    parser.add_argument("--memory_of", help="only print the peak memory of one contender: loop or tomfisher")


def run(args: argparse.Namespace) -> int:
    """Run one benchmark, print its table, write its record."""
    from tomfisher.benchmarks.harness import save

    module: ModuleType = importlib.import_module(f"tomfisher.benchmarks.bench_{args.benchmark}")
    result = module.run(args)
    if result:
        print(module.report(result))
    if result and args.output_path:
        save(result, args.output_path)
    return 0
