"""`tomfisher bench`: measure against peers, on this machine, now."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from tomfisher.cli.common import add_command, kappa
from tomfisher.files import check_writable
from tomfisher.progress import note

BENCHMARKS = {
    "fisher": "fisher_diagonal of a whole model against the paper's loop, BackPACK, Opacus and vmap(grad)",
    "squared_gradient": "squared_gradient_ on one layer against matrix products without squares and other forms",
    "linear": "float32 linear layers on the CPU: oneDNN against PyTorch's own choice",
    "masked_fill": "first fill, later fills and undo of a whole model's weights against index loops and copies",
    "topk": "exact top-k on the CPU, in memory and from a file, against torch, numpy and the C++ library",
    "topk_gpu": "exact top-k on a GPU against torch.topk and one read of the values",
    "growth": "how Fisher grows with samples, tokens and parameters, and top-k with length and threads",
    "choice": "multiple choice: one answer at a time, padded batches, distinct rows, shared by steps, packed",
    "analysis": "the analysis (RoPE spectrum, attention sinks) against the forward passes alone; the report of a run",
    "gpu_tests": "the GPU tests, with a record of which kernels they ran on which sources",
}
GPUS = ("h100", "h200", "a100")


def add_parser(subparsers: Any) -> None:
    """Register the command and one sub-command per benchmark."""
    parser = add_command(
        subparsers,
        "bench",
        "benchmarks against peers, side by side in one process",
        "Contenders run interleaved on the same inputs; medians, spread, ratios to the peer and to the floor.\n"
        "Machines are noisy: compare ratios, not seconds. GPU benchmarks print what they would run, and the\n"
        "floor of a named GPU, where there is none.",
        (
            "tomfisher bench fisher",
            "tomfisher bench fisher --model testbed-llama --rounds 2 --output_path fisher.json",
            "tomfisher bench squared_gradient --gpu h200",
            "tomfisher bench topk --n 10000000 --kappa 1e-5 --output_path topk.json",
            "tomfisher bench --status",
        ),
    )
    parser.add_argument(
        "--status",
        action="store_true",
        help="which kernels are verified on which GPU, and what changed since",
    )
    parser.add_argument("--results", help="folder of records for --status [the installed one]")
    parser.set_defaults(execute=lambda args: _without_name(parser, args))
    names = parser.add_subparsers(title="benchmarks", metavar="NAME")
    for name, what in BENCHMARKS.items():
        command = names.add_parser(name, help=what, description=what, allow_abbrev=False)
        command.add_argument("--output_path", help="write the record as JSON, and a PNG plot beside it")
        command.set_defaults(execute=run, benchmark=name, output_is_file=True)
        _ARGUMENTS[name](command)


def run(args: argparse.Namespace) -> int:
    """Run one benchmark, write its record and its plot, print its table."""
    from tomfisher.benchmarks.harness import save

    module: ModuleType = importlib.import_module(f"tomfisher.benchmarks.bench_{args.benchmark}")
    picture = _picture(args.output_path) if hasattr(module, "plot") else None
    result = module.run(args)
    if not result:
        return 0
    try:
        if args.output_path:
            save(result, args.output_path)
            if picture is not None:
                module.plot(result, picture)
    finally:  # where it could not be written, the print is what is left
        print(module.report(result))
    if args.output_path:
        note(f"written to {args.output_path}")
    return 0


def _picture(output_path: str | None) -> Path | None:
    """Where the plot beside a record goes; None without a record."""
    if output_path is None:
        return None
    picture = Path(output_path).with_suffix(".png")
    if picture == Path(output_path):
        raise ValueError(
            f"{output_path} is the plot's name; the record is JSON. Give --output_path NAME.json."
        )
    check_writable(picture)
    return picture


def _without_name(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if not args.status:
        parser.print_help()
        return 0
    from tomfisher.benchmarks import verification

    folder = Path(args.results) if args.results else verification.RESULTS
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r} with records.")
    print(verification.report(verification.load_records(folder)))
    return 0


def _fisher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m", help="model [smollm2-135m]")
    parser.add_argument("--config", help="random weights instead: tiny, llama-135m, llama-360m or llama3-8b")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), help="of the weights [fp32; of llama3-8b bf16]"
    )
    parser.add_argument("--impl", default="auto", help="tomfisher's ops, several with commas [auto]")
    parser.add_argument("--samples", type=int, default=100, help="samples per pass [100]")
    parser.add_argument("--length", type=int, default=128, help="tokens per sample [128]")
    parser.add_argument(
        "--tokens_per_batch", default="auto", help="tomfisher's batch budget, several with commas [auto]"
    )
    parser.add_argument("--peer_batch", type=int, default=8, help="samples per batch of the peers [8]")
    parser.add_argument("--contenders", help="only these, with commas [all]")
    parser.add_argument(
        "--accuracy_samples", type=int, default=4, help="samples compared with float64, 0 for none [4]"
    )
    parser.add_argument(
        "--kappa", type=kappa, default=1e-4, help="of the masks compared with float64's [1e-4]"
    )
    parser.add_argument(
        "--no_memory", dest="memory", action="store_false", help="skip peak memory on the CPU"
    )
    parser.add_argument("--memory_of", help="only print the peak memory of one contender, such as loop")
    _shared(parser)


def _squared_gradient(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", help="whose layers, several with commas [llama3-8b; on the CPU llama-135m]"
    )
    parser.add_argument(
        "--batches",
        default="8x128,32x128,8x512,100~100",
        help="samples x tokens, or samples~mean for ragged ones [8x128,32x128,8x512,100~100]",
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="[bf16 on a GPU, fp32 on the CPU]")
    _shared(parser, rounds=20)


def _linear(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="llama-135m", help="whose layers [llama-135m]")
    parser.add_argument("--tokens", default="64,512", help="rows of the input, several with commas [64,512]")
    parser.add_argument("--rounds", type=_positive, default=10, help="timed rounds [10]")


def _masked_fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="whose shapes, several with commas [llama3-8b; CPU: llama-135m,800M]")
    parser.add_argument("--kappa", type=kappa, nargs="+", default=[1e-5, 1e-3], help="[1e-5 1e-3]")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="[bf16 on a GPU, fp32 on the CPU]")
    _shared(parser, rounds=10)


def _topk(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n", type=_number, nargs="+", default=[10**7, 2 * 10**8], help="values [1e7 2e8]")
    parser.add_argument("--kappa", type=kappa, nargs="+", default=[1e-5, 1e-3, 0.1], help="[1e-5 1e-3 0.1]")
    parser.add_argument(
        "--distributions",
        default="fisher,uniform,lognormal,equal,sorted",
        help="[fisher,uniform,lognormal,equal,sorted]",
    )
    parser.add_argument("--store", help="Fisher store with the real values [runs/demo-smollm2/fisher/task]")
    parser.add_argument(
        "--stored_n", type=_number, default=2 * 10**9, help="values in a file, 0 for none [2e9]"
    )
    parser.add_argument("--stored_distributions", default="fisher", help="[fisher]")
    parser.add_argument(
        "--scratch", default=".", help="folder for that file, which is deleted afterwards [.]"
    )
    parser.add_argument("--rounds", type=_positive, default=5, help="timed rounds [5]")
    _patience(parser)
    parser.add_argument("--quick", action="store_true", help="20,000 values, in memory and in a file")


def _topk_gpu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n", type=_number, default=7 * 10**9, help="float32 values [7e9]")
    parser.add_argument("--kappa", type=kappa, nargs="+", default=[1e-5, 1e-3], help="[1e-5 1e-3]")
    parser.add_argument(
        "--distributions", default="uniform,lognormal,equal", help="[uniform,lognormal,equal]"
    )
    parser.add_argument("--store", help="Fisher store, for the distribution fisher")
    _patience(parser)
    _shared(parser, rounds=10)


def _growth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--axes", default="samples,length,parameters,topk", help="[samples,length,parameters,topk]"
    )
    parser.add_argument("--kappa", type=kappa, default=1e-5, help="of top-k [1e-5]")
    parser.add_argument("--rounds", type=_positive, default=3, help="timed rounds [3]")
    parser.add_argument("--no_memory", dest="memory", action="store_false", help="skip peak memory")
    parser.add_argument("--quick", action="store_true", help="sizes that take seconds")


def _choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m", help="model [smollm2-135m]")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), default="bf16", help="of the weights [bf16]"
    )
    parser.add_argument("--task", help="whose questions [false-belief; testbed for its models]")
    parser.add_argument("--questions", type=_positive, default=320, help="how many [320]")
    parser.add_argument("--batch_size", type=_positive, default=32, help="rows of a forward [32]")
    parser.add_argument("--rounds", type=_positive, default=5, help="timed rounds [5]")
    parser.add_argument("--device", help="such as cpu or cuda:0 [CUDA where there is one]")


def _analysis(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m", help="model with RoPE [smollm2-135m]")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the weights [fp32]"
    )
    parser.add_argument("--task", help="whose prompts [false-belief; testbed for its models]")
    parser.add_argument("--prompts", type=int, default=64, help="prompts that are timed [64]")
    parser.add_argument("--tokens_per_batch", type=int, default=4096, help="tokens of a batch [4096]")
    parser.add_argument(
        "--memory_prompts", default="16,64,256", help="numbers of prompts for peak memory [16,64,256]"
    )
    parser.add_argument("--no_memory", dest="memory", action="store_false", help="skip peak memory")
    parser.add_argument("--report", metavar="RUN", help="run folder whose report is written and timed too")
    parser.add_argument("--rounds", type=_positive, default=5, help="timed rounds [5]")
    parser.add_argument("--device", help="such as cpu or cuda:0 [CUDA where there is one]")


def _gpu_tests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tests", default="tests", help="folder of the tests [tests]")


def _shared(parser: argparse.ArgumentParser, rounds: int = 3) -> None:
    parser.add_argument("--rounds", type=_positive, default=rounds, help=f"timed rounds [{rounds}]")
    parser.add_argument("--device", help="such as cpu or cuda:0 [CUDA where there is one]")
    parser.add_argument(
        "--gpu", choices=GPUS, default="h100", help="whose floor is printed without a GPU [h100]"
    )


def _patience(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--patience",
        type=float,
        default=30.0,
        help="seconds of a warm-up above which there is no other round [30]",
    )


def _number(text: str) -> int:
    """The argparse type of a count, 2000000000 or 2e9."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value < 0 or value != int(value):
        raise argparse.ArgumentTypeError(f"must be a whole number such as 1000000 or 1e6, got {text!r}.")
    return int(value)


def _positive(text: str) -> int:
    """The argparse type of a number of rounds, questions or rows."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text!r}.")
    return int(text)


_ARGUMENTS = {
    "fisher": _fisher,
    "squared_gradient": _squared_gradient,
    "linear": _linear,
    "masked_fill": _masked_fill,
    "topk": _topk,
    "topk_gpu": _topk_gpu,
    "growth": _growth,
    "choice": _choice,
    "analysis": _analysis,
    "gpu_tests": _gpu_tests,
}
