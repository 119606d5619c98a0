"""Fisher diagonal of a whole model: tomfisher beside the paper's loop and the peers, on the same samples.

Floor: a pass needs three matrix products per captured weight and token (forward, input gradient, weight
gradient; 2 FLOP each) and two per head weight, whatever the implementation. It is that many FLOP at the best rate
that a large matrix product of the same dtype was measured to run at. "passes alone" is the model's own forward
pass and the input gradients, on the batches that tomfisher takes: what it costs before anything is squared.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import tomfisher
from tomfisher.benchmarks import memory, models, peers, plots
from tomfisher.benchmarks.harness import Contender, interleave, matmul_rate, reason, record, summary
from tomfisher.benchmarks.tables import FLOOR, SPEED, TIME, Column, render
from tomfisher.fisher import gpu_pass, select_parameters
from tomfisher.fisher.objective import sample_losses
from tomfisher.fisher.sizes import sizes_of
from tomfisher.models.load import DTYPES, resolve_device
from tomfisher.runtime import gpus
from tomfisher.runtime.batches import collate, plan_batches
from tomfisher.runtime.device import device_of
from tomfisher.runtime.memory import release, token_budget
from tomfisher.runtime.modes import frozen
from tomfisher.sample import Sample

SETTINGS = (
    "model", "config", "dtype", "impl", "samples", "length", "rounds", "tokens_per_batch", "peer_batch",
    "accuracy_samples", "kappa",
)  # fmt: skip
COLUMNS = (
    *TIME,
    SPEED,
    FLOOR,
    Column("samples/s", "samples_per_s"),
    Column("peak", "peak_memory_bytes", "GiB"),
    Column("rel. error", "error", ".1e"),
    Column("Jaccard", "jaccard", ".4f"),
)
# largest error of a right result, relative to the largest entry of its tensor: 16-bit passes round every activation
TOLERANCE = {"fp32": 1e-2, "bf16": 0.5, "fp16": 0.5}
PASSES, LOOP_FP32 = "passes alone", "loop fp32"
_MEMORY_SAMPLES = 8  # enough to reach the peak: every pass of a run needs the same memory
Fisher = Callable[[Sequence[Sample]], Any]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the record; with --memory_of, print the peak memory of one contender instead."""
    large = args.config in ("llama3-8b", "llama3-70b")
    args.dtype = args.dtype or ("bf16" if large else "fp32")
    if large and not torch.cuda.is_available():
        print(plan(args))
        return {}
    if args.memory_of:
        print(json.dumps({"contender": args.memory_of, "peak": _peak_of(args)}))
        return {}
    device = resolve_device(args.device)
    model, samples = models.inputs(
        args.model, args.config, args.dtype, args.device, args.samples, args.length
    )
    passes = contenders(args, model)
    accuracy = _accuracy(args, model, passes, samples, device)
    wrong = wrong_results(accuracy, TOLERANCE[args.dtype])
    timed = {
        name: Contender(partial(run_pass, samples), peer=_is_peer(name))
        for name, run_pass in passes.items()
        if name not in wrong
    }
    for budget in args.tokens_per_batch.split(","):
        name = _at(PASSES, budget, args)
        timed[name] = Contender(partial(_passes_alone, model, budget, samples), peer=True)
    timings = interleave(timed, args.rounds, device, warmup=not accuracy, desc="Fisher passes")
    baseline = next(iter(passes))
    work = flop_of(model, samples)
    rate = matmul_rate(DTYPES[args.dtype], device)
    rows = summary(timings, baseline, work / rate)
    for name, row in rows.items():
        row["samples_per_s"] = len(samples) / row["seconds"]["median"]
        row["flop_per_s"] = work / row["seconds"]["median"]
        if name in passes:
            row["peak_memory_bytes"] = _peak_memory(args, name, passes, model, samples, device)
        row |= accuracy.get(name, {})
    case = {
        "name": f"{args.config or args.model}, {args.dtype}, {len(samples)} x {args.length} tokens",
        "baseline": baseline,
        "contenders": rows,
        "absent": {**wrong, **timings.absent},
        "floor_s": work / rate,
        "matmul_flop_per_s": rate,
        "flop": work,
        "notes": [*_notes(args, accuracy), *_on_paper(args, model, rows, device)],
    }
    return record("fisher", {k: getattr(args, k) for k in SETTINGS}, {"cases": [case]}, device)


def report(result: dict[str, Any]) -> str:
    """The record as a table."""
    return render(result["results"]["cases"], COLUMNS)


def plot(result: dict[str, Any], path: str) -> None:
    """Time over the floor, per contender."""
    cases = result["results"]["cases"]
    plots.bars(cases, path, "times_floor.median", "time / floor", "Fisher diagonal of a model", line=1.0)


def contenders(args: argparse.Namespace, model: nn.Module) -> dict[str, Fisher]:
    """Name to a function of the samples; the first is the baseline, the paper's loop.

    In 16 bits on the CPU the baseline is the loop in float32: what one would run instead.
    """
    passes: dict[str, Fisher] = {}
    if args.dtype != "fp32" and resolve_device(args.device).type == "cpu":
        single, _ = models.inputs(args.model, args.config, "fp32", args.device, 1, args.length)
        passes[LOOP_FP32] = partial(peers.loop, single)
    passes["loop"] = partial(peers.loop, model)
    for impl in args.impl.split(","):
        for budget in args.tokens_per_batch.split(","):
            name = _at("tomfisher" if impl == "auto" else f"tomfisher {impl}", budget, args)
            passes[name] = partial(_ours, model, impl, budget)
    for name in ("backpack", "opacus", "vmap"):
        passes[name] = partial(_peer, name, model, args.peer_batch)
    wanted = args.contenders.split(",") if args.contenders else list(passes)
    several = "," in args.tokens_per_batch  # then "tomfisher" means all of its budgets
    short = {n: n.rpartition(" ")[0] if several and n.startswith("tomfisher") else n for n in passes}
    unknown = set(wanted) - set(passes) - set(short.values())
    if unknown:
        raise ValueError(f"contenders must be among {', '.join(passes)}, got {', '.join(sorted(unknown))}.")
    return {name: run_pass for name, run_pass in passes.items() if {name, short[name]} & set(wanted)}


def _at(name: str, budget: str, args: argparse.Namespace) -> str:
    """The name at a token budget: as it is where there is only one."""
    return f"{name} {budget}" if "," in args.tokens_per_batch else name


def wrong_results(accuracy: dict[str, dict[str, float]], limit: float) -> dict[str, str]:
    """Peers whose results are too far from float64 to be timed, with the reason.

    Each is judged on the weights that it was given: rounding SmolLM2's to bf16 moves single entries of the exact
    Fisher diagonal by more than the largest entry of their tensor, which no pass over them can mend.

    Raises:
        RuntimeError: the loop's or our own result is.
    """
    wrong = {}
    for name, row in accuracy.items():
        error = row["error"] if name == LOOP_FP32 else row.get("error_same_weights", row["error"])
        if not error <= limit:
            wrong[name] = f"a wrong result: relative error {error:.1e}, more than {limit:g}"
            if not _is_peer(name):
                raise RuntimeError(f"{name}: {wrong[name]}.")
    return wrong


def _is_peer(name: str) -> bool:
    return not name.startswith(("loop", "tomfisher"))


def flop_of(model: nn.Module, samples: Sequence[Sample]) -> float:
    """FLOP of one pass: forward, input gradient and weight gradient of the decoder, the first two of the head."""
    weights = sum(p.numel() for p in select_parameters(model, "decoder-linear").values())
    head = model.get_output_embeddings().weight.numel()  # type: ignore[operator]
    return flop(weights, head, sum(len(s) for s in samples))


def flop(weights: int, head: int, tokens: int) -> float:
    """`2·tokens·(3·weights + 2·head)`."""
    return 2.0 * tokens * (3 * weights + 2 * head)


def plan(args: argparse.Namespace) -> str:
    """What would run on a GPU, and what it takes on paper on a named one."""
    gpu = gpus.named(args.gpu)
    sizes = sizes_of(models.without_weights(args.config))
    estimate = gpu_pass.on_paper(gpu, sizes, args.samples, args.length)
    return "\n".join(
        (
            "No CUDA device here. With one, this benchmark times loop, tomfisher, backpack, opacus and vmap on",
            f"  {args.config}, bf16 random weights, {args.samples} x {args.length} tokens, decoder-linear:",
            f"  {estimate.flop / 1e12:.0f} TFLOP of matrix products. On paper, on",
            gpu_pass.format_pass(gpu, estimate),
        )
    )


def _on_paper(
    args: argparse.Namespace, model: nn.Module, rows: dict[str, Any], device: torch.device
) -> list[str]:
    """On a GPU whose data sheet is known: the pass on paper, beside what was measured."""
    gpu = gpus.at_hand(device)
    if gpu is None:
        return []
    names = {"tomfisher": gpu_pass.WHOLE, "loop": gpu_pass.LOOP, PASSES: gpu_pass.GRADIENTS}
    measured = {names[n]: row["seconds"]["median"] for n, row in rows.items() if n in names}
    sizes = sizes_of(model, dtype=DTYPES[args.dtype])
    estimate = gpu_pass.on_paper(gpu, sizes, args.samples, args.length)
    shown = gpu_pass.format_pass(gpu, estimate, measured).splitlines()
    return [
        "on paper, beside what was measured (passes alone hold the elementwise functions and the loss too):",
        *shown,
    ]


def _ours(model: nn.Module, impl: Any, budget: str, samples: Sequence[Sample]) -> Any:
    tokens = budget if budget == "auto" else int(budget)
    return tomfisher.fisher_diagonal(model, samples, tokens_per_batch=tokens, impl=impl, progress=False)


def _passes_alone(model: nn.Module, budget: str, samples: Sequence[Sample]) -> None:
    device = device_of(model)
    if budget != "auto":
        tokens = int(budget)
    elif (
        device.type == "cuda"
    ):  # as the run takes it: what its probe measures depends on the longest samples alone
        probed = tomfisher.fisher_diagonal(model, samples[:2], progress=False)
        tokens = probed.metadata["tokens_per_batch"]["taken"]
    else:
        tokens = token_budget(budget, model, device)
    with frozen(model):
        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
        alive = embedding.register_forward_hook(lambda module, ids, output: output.requires_grad_())
        for indices in plan_batches([len(sample) for sample in samples], tokens):
            sample_losses(model, collate(samples, indices), "empirical", "mean", 0).sum().backward()
        alive.remove()


def _peer(name: str, model: nn.Module, batch: int, samples: Sequence[Sample]) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hooks on a first layer, of operations that vmap cannot batch
        try:
            return peers.PASSES[name](model, samples, batch)
        except Exception:
            release()
            raise


def _accuracy(
    args: argparse.Namespace,
    model: nn.Module,
    passes: dict[str, Fisher],
    samples: list[Sample],
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Largest error and overlap of the top-κ mask with float64, on the first samples.

    `error` and `jaccard` are against the float32 weights in float64; the keys ending in "_same_weights" against
    the weights as they were rounded to 16 bits.
    """
    few = samples[: args.accuracy_samples]
    weights = sum(p.numel() for p in model.parameters())
    if not few or 24 * weights > memory.available_bytes(device):
        return {}
    exact = {"": _exact(args, model, few, rounded=False)}
    if args.dtype != "fp32":
        exact["_same_weights"] = _exact(args, model, few, rounded=True)
    errors: dict[str, dict[str, float]] = {}
    for name, run_pass in passes.items():
        try:
            F = run_pass(few)
        except Exception as error:
            if not _is_peer(name):
                raise
            warnings.warn(f"{name} failed: {reason(error)}", stacklevel=2)
            continue
        errors[name] = {}
        for suffix, truth in exact.items():
            errors[name][f"error{suffix}"] = error_of(F, truth)
            errors[name][f"jaccard{suffix}"] = overlap(F, truth, args.kappa)
    return errors


def _exact(
    args: argparse.Namespace, model: nn.Module, samples: list[Sample], rounded: bool
) -> dict[str, Tensor]:
    if rounded or args.dtype == "fp32":
        source = copy.deepcopy(model)
    else:
        source, _ = models.inputs(args.model, args.config, "fp32", args.device, 1, args.length)
    return {name: F.float() for name, F in peers.loop(source.double(), samples).items()}


def error_of(F: Any, truth: dict[str, Tensor]) -> float:
    """Largest difference in any tensor, relative to the tensor's largest entry."""
    return max(float((F[n].float() - exact).abs().max() / exact.abs().max()) for n, exact in truth.items())


def overlap(F: Any, truth: dict[str, Tensor], kappa: float) -> float:
    """Jaccard index of the two masks at κ: entries in both over entries in either; 1 where both are empty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensors too small for an entry at this κ
        ours, theirs = (
            tomfisher.top_fraction({n: f[n].float().cpu() for n in truth}, kappa) for f in (F, truth)
        )
    return (ours & theirs).nnz / max(1, (ours | theirs).nnz) if (ours | theirs).nnz else 1.0


def _notes(args: argparse.Namespace, accuracy: dict[str, dict[str, float]]) -> list[str]:
    if not accuracy:
        return [
            "error against float64: not measured (--accuracy_samples 0, or float64 does not fit in memory)"
        ]
    count = min(args.accuracy_samples, args.samples)
    notes = [f"error and Jaccard (κ = {args.kappa:g}) against float64, float32 weights, {count} samples"]
    for name, row in accuracy.items():
        if "jaccard_same_weights" in row:
            notes.append(
                f"{name}: error {row['error_same_weights']:.1e}, Jaccard {row['jaccard_same_weights']:.4f} "
                "against float64 on the rounded weights"
            )
    return notes


def _peak_memory(
    args: argparse.Namespace,
    name: str,
    passes: dict[str, Fisher],
    model: nn.Module,
    samples: list[Sample],
    device: torch.device,
) -> int | None:
    """Peak of a pass, model included: on the CPU in a process of its own, which has run nothing else."""
    if device.type == "cuda":
        extra = memory.peak_extra_bytes(lambda: passes[name](samples[:_MEMORY_SAMPLES]), device)
        return (extra or 0) + sum(p.numel() * p.element_size() for p in model.parameters())
    return peak_in_fresh_process(name, args, min(_MEMORY_SAMPLES, args.samples)) if args.memory else None


def peak_in_fresh_process(name: str, args: argparse.Namespace, samples: int) -> int:
    """Peak resident memory of one contender's pass over so many samples, measured by --memory_of."""
    dtype = "fp32" if name == LOOP_FP32 else args.dtype
    command = [sys.executable, "-m", "tomfisher.cli.main", "bench", "fisher"]
    command += ["--memory_of", "loop" if name == LOOP_FP32 else name, "--dtype", dtype]
    for key in ("model", "config", "impl", "length", "tokens_per_batch", "peer_batch"):
        if getattr(args, key) is not None:
            command += [f"--{key}", str(getattr(args, key))]
    command += ["--samples", str(samples), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Measuring the memory of {name} failed: {done.stderr.strip()[-500:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def _peak_of(args: argparse.Namespace) -> int:
    model, samples = models.inputs(
        args.model, args.config, args.dtype, args.device, args.samples, args.length
    )
    args.contenders = None
    passes = contenders(args, model)
    if args.memory_of not in passes:
        raise ValueError(f"memory_of must be one of {', '.join(passes)}, got {args.memory_of!r}.")
    run_pass = passes[args.memory_of]
    passes.clear()  # lets go of the second model
    memory.reset_peak()
    run_pass(samples)
    return memory.peak_bytes()
