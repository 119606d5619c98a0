"""`tomfisher plan`: what a study will take, before it is run."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tomfisher.cli.bench import GPUS
from tomfisher.cli.common import add_command, add_settings, given_settings, note_own_texts
from tomfisher.progress import duration

if TYPE_CHECKING:
    from tomfisher.fisher.linear_maps import Coverage
    from tomfisher.fisher.plan import FisherPlan
    from tomfisher.studies.plan import StudyPlan


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "plan",
        "methods, memory and time of a study, before it is run",
        "Probe the model and print which parameters are captured in the backward pass, which take the one-sample\n"
        "fallback and why, how much memory both Fisher diagonals need, and about how long they and the points of\n"
        "the sweep will take. Takes the settings of `tomfisher run`.",
        (
            "tomfisher plan --preset demo-smollm2",
            "tomfisher plan --model smollm2-135m --kappas 1e-5,1e-4 --limit 160",
            "tomfisher plan --model ./my-model --control my_text.txt --params all --n_control 1000",
            "tomfisher plan --gpu h100 --model llama3-8b",
        ),
    )
    parser.add_argument("--config", "-C", metavar="YAML", help="read settings from this file")
    parser.add_argument("--preset", help="a complete named study (tomfisher ls presets)")
    add_settings(parser)
    parser.add_argument(
        "--impl", default="auto", help="ops: auto, triton, triton-hopper, cpp or reference [auto]"
    )
    parser.add_argument(
        "--gpu",
        choices=GPUS,
        help="estimate a Fisher pass on that GPU from the model's config alone (also llama3-8b and llama3-70b), for "
        "samples of --control_length tokens; nothing is run",
    )
    parser.set_defaults(execute=run, saves=False)


def run(args: argparse.Namespace) -> int:
    """Probe, time a little, print."""
    if args.gpu:
        print(on_gpu(given_settings(args), args.gpu))
        return 0
    from tomfisher.studies.config import Config
    from tomfisher.studies.plan import plan_study

    config = Config.resolve(given_settings(args), args.config, args.preset)
    if args.config is None and args.preset is None:
        note_own_texts(config.model, given_settings(args))
    print(format_study(plan_study(config, args.impl)))
    return 0


def on_gpu(settings: dict[str, Any], name: str) -> str:
    """A Fisher pass over the task's samples on a named GPU, on paper."""
    import torch

    from tomfisher.benchmarks import gpu_pass, gpus, models
    from tomfisher.models.load import resolve_dtype
    from tomfisher.studies.config import Config

    config = Config.from_dict({"fisher_dtype": "bf16", **settings})
    dtype = resolve_dtype(config.fisher_dtype, torch.device("cpu"))
    model = models.without_weights(config.model, config.trust_remote_code, config.revision)
    budget = None if config.tokens_per_batch == "auto" else int(config.tokens_per_batch)
    gpu, sizes = gpus.named(name), gpu_pass.sizes_of(model, config.params, dtype)
    estimate = gpu_pass.on_paper(gpu, sizes, config.n_task, config.control_length, budget)
    head = f"{config.model}, {config.fisher_dtype}: {sizes.weights:,} weights of {config.params}, "
    return f"{head}{config.n_task} samples of {config.control_length} tokens\n{gpu_pass.format_pass(gpu, estimate)}"


def format_study(plan: StudyPlan) -> str:
    """The plan of a study as aligned lines."""
    lines = []
    for which, fisher in plan.fisher.items():
        lines += [f"{which} Fisher diagonal", format_fisher(fisher), ""]
    lines += [
        "sweep",
        f"  points      {plan.points}, with {plan.questions} questions and {plan.perplexity_tokens:,} tokens each",
        f"  time        about {duration(plan.points * plan.seconds_per_point)} (a few timed questions, extrapolated)",
        "",
        f"in all        about {duration(plan.seconds)}",
    ]
    return "\n".join([*lines, "", plan.lacking] if plan.lacking else lines)


def format_fisher(plan: FisherPlan) -> str:
    """The plan of a Fisher diagonal as aligned lines."""
    lines = [
        f"weights     {plan.num_weights:,} in {len(plan.methods)} tensors",
        f"coverage    {_covered(plan.coverage)}",
        f"samples     {plan.num_samples} with {plan.num_tokens:,} tokens, in {plan.num_batches} backward passes "
        f"of at most {plan.tokens_per_batch} tokens",
        "runs        " + ", ".join(f"{op}: {impl}" for op, impl in plan.implementations.items()),
        f"memory      about {_gib(plan.peak_bytes)}: model {_gib(plan.model_bytes)}, sums {_gib(plan.fisher_bytes)}, "
        f"one gradient {_gib(plan.gradient_bytes)}, activations about {_gib(plan.activation_bytes)}",
        f"time        about {duration(plan.seconds)} (one timed sample, extrapolated)",
        *_methods(plan),
    ]
    return "\n".join(f"  {line}" for line in lines)


def _covered(coverage: Coverage) -> str:
    """Share of the decoder's linear maps; those that are missing, a line for each kind in all layers."""
    from tomfisher.runtime.structure import layer_pattern

    shares = [f"{part / max(1, coverage.weights):.1%}" for part in (coverage.captured, coverage.fallback)]
    text = (
        f"{coverage.share:.1%} of the {coverage.weights:,} weights of linear maps in the decoder's layers "
        f"({shares[0]} captured in batches, {shares[1]} on the fallback)"
    )
    missing = list(dict.fromkeys(layer_pattern(name) for name in coverage.missing))
    return f"{text}, without {', '.join(missing)}" if missing else text


def _methods(plan: FisherPlan) -> Iterator[str]:
    """Every parameter under its method; those that differ only in the layer share a line."""
    from tomfisher.runtime.structure import layer_pattern

    for method, count in plan.method_counts().items():
        yield f"{method}: {count} tensors"
        names = Counter(layer_pattern(name) for name, taken in plan.methods.items() if taken == method)
        yield from (f"  {pattern}" + (f" ({n})" if n > 1 else "") for pattern, n in names.items())


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
