"""`squared_gradient_` on one layer, against upper bounds (matrix products without squares) and other ways.

Upper bounds: the same product over all tokens at once, by cuBLAS (`torch.mm`) and by a plain Triton kernel with
the same tile. They compute no Fisher; no implementation can be faster.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tomfisher.benchmarks import memory, models, plots
from tomfisher.benchmarks.harness import Contender, gathered, interleave, matmul_rate, reason, summary
from tomfisher.benchmarks.tables import FLOOR, SPEED, TIME, Column, render
from tomfisher.models.load import DTYPES, resolve_device
from tomfisher.ops import Impl, squared_gradient_
from tomfisher.runtime import gpus
from tomfisher.runtime.memory import release

BASELINE, HOPPER = "mm per sample", "triton-hopper"
BOUNDS = ("mm of all tokens", "plain Triton GEMM")
COLUMNS = (
    *TIME,
    SPEED,
    FLOOR,
    Column("TFLOP/s", "tflop_per_s", ".3g"),
    Column("% mm", "percent_of_mm", ".0f"),
    Column("% Triton", "percent_of_triton", ".0f"),
    Column("GB moved", "gb_moved", ".3g"),
    Column("extra mem.", "peak_extra_bytes", "MiB"),
    Column("rel. error", "error", ".1e"),
)
# largest error of a right result: squares of 16-bit gradients, summed in 16 bits by some peers
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.05}
_ROWS = 64  # rows of F that are compared with float64


class Problem(NamedTuple):
    """One layer and one batch.

    Attributes:
        name: for tables.
        d_out: rows of F.
        d_in: columns of F.
        lengths: tokens of each sample.
    """

    name: str
    d_out: int
    d_in: int
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Of all samples."""
        return sum(self.lengths)


class Operands(NamedTuple):
    """What all contenders get: packed rows, and the same padded to `[samples, longest, ·]`."""

    Y: Tensor
    X: Tensor
    offsets: list[int]
    padded_Y: Tensor
    padded_X: Tensor


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every problem and return the record; without a GPU, print what would run."""
    if args.device is None and not torch.cuda.is_available():
        print(plan(wanted(args, "llama3-8b"), args.gpu))
        return {}
    device = resolve_device(args.device)
    model = args.model or ("llama3-8b" if device.type == "cuda" else "llama-135m")
    dtype = args.dtype or ("bf16" if device.type == "cuda" else "fp32")
    rate = matmul_rate(DTYPES[dtype], device)
    cases = (measure(p, DTYPES[dtype], device, args.rounds, rate, args.hopper) for p in wanted(args, model))
    settings = {"model": model, "dtype": dtype, "rounds": args.rounds, "batches": args.batches}
    settings |= {name: getattr(args, name) for name in ("d_out", "d_in", "tokens", "samples")}
    return gathered("squared_gradient", settings, cases, device, args.cases_path)


def report(result: dict[str, Any]) -> str:
    """The record as tables."""
    return render(result["results"]["cases"], COLUMNS)


def plot(result: dict[str, Any], path: str) -> None:
    """Speed in TFLOP/s of every contender."""
    cases = result["results"]["cases"]
    plots.bars(cases, path, "tflop_per_s", "TFLOP/s of matrix product", "squared_gradient_")


def wanted(args: argparse.Namespace, model: str) -> list[Problem]:
    """The one layer whose shape is given (`--out --in --tokens --samples`), or those of the models.

    Raises:
        ValueError: a part of the shape is missing, or there are fewer tokens than samples.
    """
    own = {"--out": args.d_out, "--in": args.d_in, "--tokens": args.tokens, "--samples": args.samples}
    if not any(own.values()):
        return problems(args.model or model, args.batches)
    missing = [flag for flag, value in own.items() if not value]
    if missing:
        raise ValueError(
            f"A shape of your own needs all of {', '.join(own)}; {', '.join(missing)} is missing."
        )
    if args.tokens < args.samples:
        raise ValueError(
            f"Every sample has a token at least, got --tokens {args.tokens} --samples {args.samples}."
        )
    each, more = divmod(args.tokens, args.samples)
    lengths = (each + 1,) * more + (each,) * (args.samples - more)
    name = f"{args.d_out}x{args.d_in}, {args.samples} samples, {args.tokens} tokens"
    return [Problem(name, args.d_out, args.d_in, lengths)]


def problems(models_: str, batches: str) -> list[Problem]:
    """The distinct layers of every model asked for, times the batches; both lists with commas."""
    wanted_problems = []
    for model in models_.split(","):
        for layer in models.distinct_layers(model):
            for batch in batches.split(","):
                name = f"{model} {layer.name} {layer.d_out}x{layer.d_in}, {batch}"
                wanted_problems.append(Problem(name, layer.d_out, layer.d_in, lengths_of(batch)))
    return wanted_problems


def lengths_of(batch: str) -> tuple[int, ...]:
    """Sample lengths of a batch such as "8x128", or "100~100" for 100 ragged samples of mean length 100.

    Ragged lengths are uniform from a quarter of the mean to seven quarters, always the same.
    """
    try:
        count, length = (int(part) for part in batch.replace("~", "x").split("x"))
    except ValueError:
        raise ValueError(f"A batch is like 8x128 or, ragged, 100~100; got {batch!r}.") from None
    if "~" not in batch:
        return (length,) * count
    spread = torch.linspace(length / 4, 7 * length / 4, count).round().long().clamp_min(1)
    return tuple(spread[torch.randperm(count, generator=torch.Generator().manual_seed(0))].tolist())


def measure(
    problem: Problem,
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    rate: float,
    hopper: bool = False,
) -> dict[str, Any]:
    """Check every contender's result against float64, then time all of them.

    Args:
        problem: layer and batch.
        dtype: of the operands.
        device: where.
        rounds: timed rounds.
        rate: measured FLOP/s of a large matrix product: the floor where no data sheet gives one.
        hopper: whether the kernel that no GPU has verified is timed too; where it fails the record says why.

    Returns:
        A case of the record.
    """
    operands = make_operands(problem, dtype, device)
    ways = contenders(problem, operands, hopper)
    absent, rows = {}, {}
    for name, way in ways.items():
        try:
            rows[name] = _checked(name, way, problem, operands)
        except Exception as error:
            if name.startswith("tomfisher") and not isinstance(error, NotImplementedError):
                raise
            absent[name] = reason(error)
            release()
    F = torch.zeros(problem.d_out, problem.d_in, device=device)
    timed = {name: Contender(partial(ways[name], F), peer=not name.startswith("tomfisher")) for name in rows}
    timings = interleave(timed, rounds, device, desc=problem.name)
    floor = _floor(problem, dtype, device, rate)
    times = summary(timings, BASELINE, floor)
    for name, own in times.items():
        rows[name] |= own
        rows[name]["tflop_per_s"] = (
            2e-12 * problem.d_out * problem.d_in * problem.tokens / own["seconds"]["median"]
        )
        rows[name]["gb_moved"] = bytes_moved(name, problem, dtype.itemsize) / 1e9
        for key, bound in zip(("percent_of_mm", "percent_of_triton"), BOUNDS, strict=True):
            if bound in times:
                rows[name][key] = 100 * times[bound]["seconds"]["median"] / own["seconds"]["median"]
    return {
        "name": problem.name,
        "d_out": problem.d_out,
        "d_in": problem.d_in,
        "lengths": list(problem.lengths),
        "baseline": BASELINE,
        "floor_s": floor,
        "contenders": {name: rows[name] for name in times},
        "absent": {**absent, **timings.absent},
    }


def make_operands(problem: Problem, dtype: torch.dtype, device: torch.device) -> Operands:
    """Normal random rows, packed and padded."""
    generator = torch.Generator(device).manual_seed(0)
    offsets = [0, *accumulate(problem.lengths)]
    Y, X = (
        torch.randn(problem.tokens, width, device=device, generator=generator).to(dtype)
        for width in (problem.d_out, problem.d_in)
    )
    padded = [
        nn.utils.rnn.pad_sequence([rows[a:b] for a, b in pairwise(offsets)], batch_first=True)
        for rows in (Y, X)
    ]
    return Operands(Y, X, offsets, *padded)


def contenders(
    problem: Problem, operands: Operands, hopper: bool = False
) -> dict[str, Callable[[Tensor], object]]:
    """Name to a function that adds to F (the upper bounds: that overwrites it with something else)."""
    Y, X, offsets, padded_Y, padded_X = operands
    device = Y.device.type
    ours = ("triton", "reference") if device == "cuda" else ("cpp", "reference")
    ways: dict[str, Callable[[Tensor], object]] = {
        f"tomfisher {impl}": partial(
            squared_gradient_, grad_output=Y, input=X, offsets=offsets, impl=cast(Impl, impl)
        )
        for impl in ours
    }
    ways[BASELINE] = partial(per_sample, Y=Y, X=X, offsets=offsets)
    ways["bmm, square, sum"] = lambda F: F.add_(torch.bmm(padded_Y.mT, padded_X).float().square_().sum(0))
    ways["BackPACK einsum"] = lambda F: F.add_(backpack_einsum(padded_Y, padded_X))
    ways["Opacus"] = opacus_way(padded_Y, padded_X)
    ways["mm of all tokens"] = lambda F: torch.mm(Y.T, X)
    if hopper:
        ways[HOPPER] = partial(
            squared_gradient_, grad_output=Y, input=X, offsets=offsets, impl="triton-hopper"
        )
    if device == "cuda":
        ways["plain Triton GEMM"] = triton_bound(problem, Y, X)
    return ways


def per_sample(F: Tensor, Y: Tensor, X: Tensor, offsets: Sequence[int]) -> None:
    """The paper's form: one matrix product per sample in the operands' dtype, squared and added."""
    for start, stop in pairwise(offsets):
        gradient = torch.mm(Y[start:stop].T, X[start:stop])
        F.addcmul_(gradient, gradient)


def backpack_einsum(Y: Tensor, X: Tensor) -> Tensor:
    """The contraction in BackPACK's SumGradSquared, ordered by opt-einsum, which torch uses where it is installed."""
    if importlib.util.find_spec("opt_einsum") is None:
        raise ImportError("opt-einsum is not installed: without it this einsum's intermediate is enormous.")
    return torch.einsum("nmi,nmj,nki,nkj->ij", Y, X, Y, X)


def opacus_way(Y: Tensor, X: Tensor) -> Callable[[Tensor], object]:
    """Per-sample gradients by Opacus' rule for `nn.Linear`, squared and summed by us."""

    def way(F: Tensor) -> Tensor:
        from opacus.grad_sample.linear import compute_linear_grad_sample

        with torch.device("meta"):
            layer = nn.Linear(X.shape[-1], Y.shape[-1], bias=False)
        return F.add_(compute_linear_grad_sample(layer, [X], Y)[layer.weight].square_().sum(0))

    return way


def triton_bound(problem: Problem, Y: Tensor, X: Tensor) -> Callable[[Tensor], object]:
    """The plain kernel with the tile that `squared_gradient_` picks for this problem."""

    def way(F: Tensor) -> None:
        from tomfisher.benchmarks.plain_gemm import plain_gemm

        tuning = importlib.import_module("tomfisher.kernels.tuning")
        shape = tuning.Problem(
            problem.d_out, problem.d_in, Y.dtype, sum(problem.lengths), len(problem.lengths)
        )
        plain_gemm(F, Y, X, tuning.pick(shape))

    return way


def exact_rows(operands: Operands) -> Tensor:
    """The first rows of the result, in float64."""
    Y, X, offsets = operands.Y[:, :_ROWS].double(), operands.X.double(), operands.offsets
    return sum((Y[a:b].T @ X[a:b]).square() for a, b in pairwise(offsets))  # type: ignore[return-value]


def bytes_moved(name: str, problem: Problem, itemsize: int) -> float:
    """Bytes that a contender cannot help moving to and from memory: by arithmetic, not measured.

    All read the operands once. Ours reads and writes F once; a form that stores per-sample gradients writes and
    reads each of them, and F as often as it adds to it.
    """
    weights, samples = problem.d_out * problem.d_in, len(problem.lengths)
    operands = itemsize * (problem.d_out + problem.d_in) * problem.tokens
    gradients = 2 * itemsize * weights * samples
    per_way = {
        BASELINE: gradients + 8 * weights * samples,
        "tomfisher reference": (8 + 8) * weights * samples,
        "bmm, square, sum": gradients + (12 if itemsize == 2 else 8) * weights * samples + 8 * weights,
        "Opacus": 2 * gradients + itemsize * weights * samples + 8 * weights,
        "mm of all tokens": itemsize * weights,
        "plain Triton GEMM": 4 * weights,
    }
    return operands + per_way.get(name, 8 * weights)


def plan(chosen: Sequence[Problem], gpu_name: str) -> str:
    """What would run on a GPU, and the floor of every problem on a named one."""
    gpu = gpus.named(gpu_name)
    lines = [
        "No CUDA device here (--device cpu measures small shapes on the processor). With one, this benchmark times",
        f"  tomfisher triton, tomfisher reference, {BASELINE}, bmm, BackPACK's einsum, Opacus, and as upper bounds",
        f"  {' and '.join(BOUNDS)}, bf16. Floors on {gpu.name}, in µs (products / squares / memory):",
    ]
    for problem in chosen:
        parts = gpus.squared_gradient_floor(
            gpu, problem.d_out, problem.d_in, problem.tokens, len(problem.lengths)
        )
        shares = " / ".join(f"{parts[key] * 1e6:.0f}" for key in ("products", "squares", "memory"))
        lines.append(f"  {problem.name:44} {parts['floor'] * 1e6:8.0f}   ({shares})")
    return "\n".join(lines)


def _checked(
    name: str, way: Callable[[Tensor], object], problem: Problem, operands: Operands
) -> dict[str, Any]:
    """Error and extra memory of one call; a wrong result is no contender."""
    device = operands.Y.device
    F = torch.zeros(problem.d_out, problem.d_in, device=device)
    way(F.clone())  # imports and compiles what it needs
    extra = memory.peak_extra_bytes(lambda: way(F), device)
    if name in BOUNDS:
        return {"peak_extra_bytes": extra}
    exact = exact_rows(operands)
    error = float((F[:_ROWS].double() - exact).abs().max() / exact.abs().max())
    if not error <= TOLERANCE[operands.Y.dtype]:
        raise RuntimeError(f"{name} is wrong: relative error {error:.1e} on {problem.name}.")
    return {"peak_extra_bytes": extra, "error": error}


def _floor(problem: Problem, dtype: torch.dtype, device: torch.device, rate: float) -> float:
    """By the data sheet of the GPU at hand where it is known, else the products at the measured rate."""
    gpu = gpus.at_hand(device)
    if gpu is None:
        return 2.0 * problem.d_out * problem.d_in * problem.tokens / rate
    samples = len(problem.lengths)
    return gpus.squared_gradient_floor(
        gpu, problem.d_out, problem.d_in, problem.tokens, samples, dtype.itemsize
    )["floor"]
