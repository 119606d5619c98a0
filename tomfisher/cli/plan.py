"""`tomfisher plan`: what a Fisher run will take, before it is run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tomfisher.cli.common import add_command, add_settings, load_named_model, setting
from tomfisher.cli.fisher import add_data, samples_of

if TYPE_CHECKING:
    from tomfisher.fisher.plan import FisherPlan


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "plan",
        "roads, memory and time of a Fisher run, before it is run",
        "Probe the model as `tomfisher fisher` would and print which parameters are captured in the backward\n"
        "pass, which take the one-sample fallback and why, how much memory the run needs and about how long.",
        (
            "tomfisher plan --model smollm2-135m --task false-belief",
            "tomfisher plan --model ./my-model --control my_text.txt --params all --n_control 1000",
            "tomfisher plan --model testbed-llama --task testbed",
        ),
    )
    add_data(parser)
    add_settings(parser, "params", "tokens_per_batch", "fisher_dtype")
    parser.add_argument("--impl", default="auto", help="ops: auto, triton, cpp or reference [auto]")
    parser.set_defaults(execute=run)


def run(args: argparse.Namespace) -> int:
    """Probe, time one sample, print."""
    from tomfisher.experiment.study import parse_params
    from tomfisher.fisher.plan import plan_fisher

    if not any(getattr(args, name, None) for name in ("task", "control", "texts")):
        args.task = setting(args, "task")
    loaded = load_named_model(args, setting(args, "fisher_dtype"))
    plan = plan_fisher(
        loaded.model,
        samples_of(args, loaded),
        params=parse_params(setting(args, "params")),
        tokens_per_batch=setting(args, "tokens_per_batch"),
        impl=args.impl,
    )
    print(format_plan(plan))
    return 0


def format_plan(plan: FisherPlan) -> str:
    """The plan as aligned lines."""
    lines = [
        f"weights     {plan.num_weights:,} in {len(plan.roads)} tensors",
        f"samples     {plan.num_samples} with {plan.num_tokens:,} tokens, in {plan.num_batches} backward passes "
        f"of at most {plan.tokens_per_batch} tokens",
        "runs        " + ", ".join(f"{op}: {impl}" for op, impl in plan.implementations.items()),
        f"memory      about {_gib(plan.peak_bytes)}: model {_gib(plan.model_bytes)}, sums {_gib(plan.fisher_bytes)}, "
        f"one gradient {_gib(plan.gradient_bytes)}, activations about {_gib(plan.activation_bytes)}",
        f"time        about {_duration(plan.seconds)} (one timed sample, extrapolated)",
        "roads",
    ]
    for road, count in plan.road_counts().items():
        first = next(name for name, taken in plan.roads.items() if taken == road)
        lines.append(f"  {count:5d}  {road}  (e.g. {first})")
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
