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

GPUS = ("h100", "h200", "a100", "4090")


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


Flag = tuple[str, dict[str, Any]]


def _flag(name: str, text: str, default: Any = None, **options: Any) -> Flag:
    return f"--{name}", {"help": text, "default": default, **options}


def _rounds(number: int) -> Flag:
    return _flag("rounds", f"timed rounds [{number}]", number, type=_positive)


def _dtype(default: str | None, text: str) -> Flag:
    return _flag("dtype", text, default, choices=("fp32", "bf16", "fp16"))


def _kappas(default: str) -> Flag:
    return _flag("kappa", f"[{default}]", [float(text) for text in default.split()], type=kappa, nargs="+")


_MODEL = _flag("model", "model [smollm2-135m]", "smollm2-135m")
_DEVICE = _flag("device", "such as cpu or cuda:0 [CUDA where there is one]")
_GPU = _flag("gpu", "GPU whose lower bounds are printed if none is present [h100]", "h100", choices=GPUS)
_OF_DEVICE = _dtype(None, "[bf16 on a GPU, fp32 on the CPU]")
_NO_MEMORY = _flag("no_memory", "skip peak memory", True, dest="memory", action="store_false")
_CASES = _flag("cases_path", "folder that gets a record of every case as soon as it is measured")
_PATIENCE = _flag(
    "patience", "seconds of a warm-up above which there is no other round [30]", 30.0, type=float
)

# what each measures, and its flags
BENCHMARKS: dict[str, tuple[str, tuple[Flag, ...]]] = {
    "fisher": (
        "fisher_diagonal of a whole model against the paper's loop, BackPACK, Opacus and vmap(grad)",
        (
            _MODEL,
            _flag("config", "random weights instead: tiny, llama-135m, llama-360m or llama3-8b"),
            _dtype(None, "of the weights [fp32; of llama3-8b bf16]"),
            _flag("impl", "tomfisher's ops, several with commas [auto]", "auto"),
            _flag("samples", "samples per pass [100]", 100, type=int),
            _flag("length", "tokens per sample [128]", 128, type=int),
            _flag("tokens_per_batch", "tomfisher's batch budget, several with commas [auto]", "auto"),
            _flag("peer_batch", "samples per batch of the peers [8]", 8, type=int),
            _flag("contenders", "only these, with commas [all]"),
            _flag("accuracy_samples", "samples compared with float64, 0 for none [4]", 4, type=int),
            _flag("kappa", "of the masks compared with float64's [1e-4]", 1e-4, type=kappa),
            _flag("no_memory", "skip peak memory on the CPU", True, dest="memory", action="store_false"),
            _flag("memory_of", "only print the peak memory of one contender, such as loop"),
            *(_rounds(3), _DEVICE, _GPU),
        ),
    ),
    "squared_gradient": (
        "squared_gradient_ on one layer against matrix products without squares and other forms",
        (
            _flag("model", "whose layers, several with commas [llama3-8b; on the CPU llama-135m]"),
            _flag(
                "batches",
                "samples x tokens, or samples~mean for ragged ones [8x128,32x128,8x512,100x128,100~100]",
                "8x128,32x128,8x512,100x128,100~100",
            ),
            _flag(
                "out", "output width of one layer, instead of a model's layers", type=_positive, dest="d_out"
            ),
            _flag("in", "input width of that layer", type=_positive, dest="d_in"),
            _flag("tokens", "tokens of the batch, spread evenly over the samples", type=_positive),
            _flag("hopper", "time triton-hopper too, which no GPU has verified", False, action="store_true"),
            _flag("samples", "samples in the batch", type=_positive),
            *(_OF_DEVICE, _rounds(20), _DEVICE, _GPU, _CASES),
        ),
    ),
    "host": (
        "what the host does before a kernel starts, the launch itself left out: calls, segments, tables of fills",
        (_rounds(200), _DEVICE),
    ),
    "linear": (
        "float32 linear layers on the CPU: oneDNN against PyTorch's own choice",
        (
            _flag("model", "whose layers [llama-135m]", "llama-135m"),
            _flag("tokens", "rows of the input, several with commas [64,512]", "64,512"),
            _rounds(10),
        ),
    ),
    "ranks": (
        "fisher_diagonal by several processes of one thread against one of them",
        (
            _flag(
                "config", "random weights: tiny, llama-14m, llama-135m or llama-360m [llama-14m]", "llama-14m"
            ),
            _flag("ranks", "processes [2]", 2, type=_positive),
            _flag("samples", "samples per pass [100]", 100, type=_positive),
            _flag("length", "tokens per sample [128]", 128, type=_positive),
            _rounds(5),
        ),
    ),
    "masked_fill": (
        "first fill, later fills and undo of a whole model's weights against index loops and copies",
        (
            _flag("model", "whose shapes, several with commas [llama3-8b; CPU: llama-135m,800M]"),
            *(_kappas("1e-5 1e-3"), _OF_DEVICE, _rounds(10), _DEVICE, _GPU, _CASES),
        ),
    ),
    "topk": (
        "exact top-k on the CPU, in memory and from a file, against torch, numpy and the C++ library",
        (
            _flag("n", "values [1e7 2e8]", [10**7, 2 * 10**8], type=_number, nargs="+"),
            _kappas("1e-5 1e-3 0.1"),
            _flag(
                "distributions",
                "[fisher,uniform,lognormal,equal,sorted]",
                "fisher,uniform,lognormal,equal,sorted",
            ),
            _flag("store", "Fisher store with the real values [runs/demo-smollm2/fisher/task]"),
            _flag("stored_n", "values in a file, 0 for none [2e9]", 2 * 10**9, type=_number),
            _flag("stored_distributions", "[fisher]", "fisher"),
            _flag("scratch", "folder for that file, which is deleted afterwards [.]", "."),
            *(_rounds(5), _PATIENCE),
            _flag("quick", "20,000 values, in memory and in a file", False, action="store_true"),
        ),
    ),
    "topk_gpu": (
        "exact top-k on a GPU against torch.topk and one read of the values",
        (
            _flag("n", "float32 values [7e9]", 7 * 10**9, type=_number),
            _kappas("1e-5 1e-3"),
            _flag("distributions", "[uniform,lognormal,equal]", "uniform,lognormal,equal"),
            _flag("store", "Fisher store, for the distribution fisher"),
            *(_PATIENCE, _rounds(10), _DEVICE, _GPU, _CASES),
        ),
    ),
    "growth": (
        "how Fisher grows with samples, tokens and parameters, and top-k with length and threads",
        (
            _flag("axes", "[samples,length,parameters,topk]", "samples,length,parameters,topk"),
            _flag("kappa", "of top-k [1e-5]", 1e-5, type=kappa),
            *(_rounds(3), _NO_MEMORY),
            _flag("quick", "sizes that take seconds", False, action="store_true"),
        ),
    ),
    "scale": (
        "the streamed Fisher over random weights of known shapes, beside the resident one; kills and resumes",
        (
            _flag(
                "shape",
                "[llama3-8b] or llama3-3b, -1b, llama-360m, llama-135m; several with commas",
                "llama3-8b",
            ),
            _flag("layers", "only the first so many decoder layers of each", type=_positive),
            _flag("model", "an existing model instead of random weights"),
            _dtype("bf16", "of the random weights [bf16]"),
            _flag("samples", "samples per pass [100]", [100], type=_positive, nargs="+"),
            _flag("tokens", "tokens per sample [128]", 128, type=_positive),
            _flag("boundary", "where hidden states are kept: ram, or a folder [beside the store]", "auto"),
            _flag("scratch", "folder on a large disk for weights and stores [.]", "."),
            _flag("keep", "leave the weights there for a later run", False, action="store_true"),
            _flag("no_resident", "skip the resident pass", True, dest="resident", action="store_false"),
            _flag(
                "kills", "kill -9 so many streamed passes instead, and compare the stores", 0, type=_number
            ),
            _rounds(1),
        ),
    ),
    "choice": (
        "multiple choice: one answer at a time, padded batches, distinct rows, shared by steps, packed",
        (
            _MODEL,
            _dtype("bf16", "of the weights [bf16]"),
            _flag("task", "whose questions [false-belief; testbed for its models]"),
            _flag("questions", "how many [320]", 320, type=_positive),
            _flag("batch_size", "rows of a forward [32]", 32, type=_positive),
            *(_rounds(5), _DEVICE),
        ),
    ),
    "analysis": (
        "the analysis (RoPE spectrum, attention sinks) against the forward passes alone; the report of a run",
        (
            _flag("model", "model with RoPE [smollm2-135m]", "smollm2-135m"),
            _dtype("fp32", "of the weights [fp32]"),
            _flag("task", "whose prompts [false-belief; testbed for its models]"),
            _flag("prompts", "prompts that are timed [64]", 64, type=int),
            _flag("tokens_per_batch", "tokens of a batch [4096]", 4096, type=int),
            _flag("memory_prompts", "numbers of prompts for peak memory [16,64,256]", "16,64,256"),
            _NO_MEMORY,
            _flag("report", "run folder whose report is written and timed too", metavar="RUN"),
            *(_rounds(5), _DEVICE),
        ),
    ),
    "gpu_tests": (
        "the GPU tests, with a record of which kernels they ran on which sources",
        (
            _flag("tests", "folder of the tests [tests]", "tests"),
            _flag("markers", "which of them, as pytest's -m [gpu and not slow]", "gpu and not slow"),
        ),
    ),
    "gpu": (
        "all that a GPU has to show, in three parts of under ten minutes (make gpu OUT=DIR)",
        (
            _flag("out", "folder of the records and logs [runs/gpu]", "runs/gpu"),
            _flag("part", "tests, fisher or fills, several with commas [all]", "all"),
            _flag("limit", "seconds of a part [570]", 570.0, type=float),
        ),
    ),
}


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
    parser.add_argument(
        "--curves",
        metavar="PNG",
        help="draw squared_gradient over tokens per sample, in percent of its bounds (GPU records)",
    )
    parser.add_argument("--results", help="folder of records for --status and --curves [the installed one]")
    parser.set_defaults(execute=lambda args: _without_name(parser, args))
    names = parser.add_subparsers(title="benchmarks", metavar="NAME", parser_class=argparse.ArgumentParser)
    for name, (what, flags) in BENCHMARKS.items():
        command = names.add_parser(name, help=what, description=what, allow_abbrev=False)
        command.add_argument("--output_path", help="write the record as JSON, and a PNG plot beside it")
        command.set_defaults(execute=run, benchmark=name, output_is_file=True)
        for flag, options in flags:
            command.add_argument(flag, **options)


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
    return module.exit_code(result) if hasattr(module, "exit_code") else 0


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
    if not args.status and not args.curves:
        parser.print_help()
        return 0
    from tomfisher.benchmarks import curves, verification

    folder = Path(args.results) if args.results else verification.RESULTS
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r} with records.")
    records = verification.load_records(folder)
    if args.status:
        print(verification.report(records))
    if args.curves:
        check_writable(args.curves)
        curves.draw(records.values(), args.curves)
        note(f"written to {args.curves}")
    return 0
