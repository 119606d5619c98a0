"""`tomfisher plan`: what a study will take, before it is run."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tomfisher.cli.bench import GPUS
from tomfisher.cli.common import add_command, add_settings, given_settings, note_own_texts
from tomfisher.cli.scale import format_scale
from tomfisher.progress import duration

if TYPE_CHECKING:
    from tomfisher.fisher.linear_maps import Coverage
    from tomfisher.fisher.plan import FisherPlan
    from tomfisher.studies.config import Config
    from tomfisher.studies.machine import Described
    from tomfisher.studies.plan import StudyPlan
    from tomfisher.studies.scale_plan import ScalePlan


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "plan",
        "methods, memory and time of a study, before it is run",
        "From the model's config alone: in which way its Fisher diagonals can be taken on a machine, memory by part,\n"
        "bytes, operations and time. The machine is the one at hand, or the one that --devices, --memory, --nodes and\n"
        "--gpu describe. Where the model fits here and its weights are here, it is then probed: which parameters are\n"
        "captured in the backward pass, which take the one-sample fallback and why, and about how long both Fisher\n"
        "diagonals and the points of the sweep will take. Takes the settings of `tomfisher run`.",
        (
            "tomfisher plan --preset demo-smollm2",
            "tomfisher plan --model smollm2-135m --kappas 1e-5,1e-4 --limit 160",
            "tomfisher plan --model ./my-model --control my_text.txt --params all --n_control 1000",
            "tomfisher plan --gpu h100 --model llama3-8b",
            "tomfisher plan --model llama3-70b --devices 8 --memory 80GB --nodes 4 --samples 100 --tokens 128",
            "tomfisher plan --model ./config.json --device cpu --memory 16GB",
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
    _add_machine(parser)
    parser.set_defaults(execute=run, saves=False)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    """Flags that describe another machine, or other samples than those of the study."""
    group = parser.add_argument_group(
        "on paper", "another machine than the one at hand; sizes like 80GB or 16GiB"
    )
    group.add_argument("--devices", type=int, help="devices of a node, each driven by one process [1]")
    group.add_argument("--nodes", type=int, help="equal nodes [1]")
    group.add_argument(
        "--memory", type=size, help="of a device; with --device cpu, of a process [the data sheet's]"
    )
    group.add_argument("--host_memory", type=size, help="main memory of a node [not looked at]")
    group.add_argument("--disk_speed", type=size, help="bytes per second of a node [2GB/s]")
    group.add_argument("--link_speed", type=size, help="that a device sends within its node [450GB/s]")
    group.add_argument("--network_speed", type=size, help="that a node sends to others [50GB/s]")
    group.add_argument("--samples", type=int, help="of each Fisher diagonal [n_task]")
    group.add_argument("--tokens", type=int, help="of each sample [control_length]")


def size(text: str) -> int:
    """The argparse type of sizes and speeds."""
    from tomfisher.studies.byte_sizes import bytes_of

    try:
        return bytes_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    """On paper; then, where the model is here and fits, probe, time a little, print."""
    from tomfisher.models.load import has_weights
    from tomfisher.studies.config import Config
    from tomfisher.studies.machine import Described
    from tomfisher.studies.plan import plan_study

    said = Described(**{name: getattr(args, name) for name in Described.__dataclass_fields__})
    if args.gpu and not any((args.devices, args.nodes, args.memory)):
        print(on_gpu(given_settings(args), args.gpu))
        return 0
    config = Config.resolve(given_settings(args), args.config, args.preset)
    if args.config is None and args.preset is None and not said.elsewhere:
        note_own_texts(config.model, given_settings(args))
    paper = on_paper(config, said, args.samples, args.tokens)
    print(format_scale(paper))
    if said.elsewhere:
        return 0
    if not has_weights(config.model):
        print("\nNot probed: the weights are not here.")
    elif paper.choice.today is None or paper.choice.today.way.stream:
        streamed = " They are streamed (--stream auto)." if paper.choice.today is not None else ""
        print(f"\nNot probed: the model and its F do not fit into memory here.{streamed}")
    else:
        print("\n" + format_study(plan_study(config, args.impl)))
    return 0


def on_paper(config: Config, said: Described, samples: int | None, tokens: int | None) -> ScalePlan:
    """The way in which the study's Fisher diagonals are taken, from the model's config."""
    import torch

    from tomfisher.benchmarks import models
    from tomfisher.fisher.sizes import sizes_of
    from tomfisher.models.load import resolve_dtype
    from tomfisher.studies.auto_stream import work_of
    from tomfisher.studies.machine import machine_for
    from tomfisher.studies.parsing import parse_params
    from tomfisher.studies.scale_plan import plan_scale

    machine = machine_for(config, said)
    dtype = resolve_dtype(config.fisher_dtype, torch.device("cpu"))
    model = models.without_weights(config.model, config.trust_remote_code, config.revision)
    sizes = sizes_of(model, parse_params(config.params), dtype)
    return plan_scale(sizes, machine, work_of(config, samples, tokens), dtype)


def on_gpu(settings: dict[str, Any], name: str) -> str:
    """A Fisher pass over the task's samples on a named GPU, on paper."""
    import torch

    from tomfisher.benchmarks import models
    from tomfisher.fisher import gpu_pass
    from tomfisher.fisher.sizes import sizes_of
    from tomfisher.models.load import resolve_dtype
    from tomfisher.runtime import gpus
    from tomfisher.studies.config import Config

    config = Config.from_dict({"fisher_dtype": "bf16", **settings})
    dtype = resolve_dtype(config.fisher_dtype, torch.device("cpu"))
    model = models.without_weights(config.model, config.trust_remote_code, config.revision)
    budget = None if config.tokens_per_batch == "auto" else int(config.tokens_per_batch)
    gpu, sizes = gpus.named(name), sizes_of(model, config.params, dtype)
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
