"""Fisher diagonal of a whole model: tomfisher beside the paper's loop, in one process, on the same samples.

Floor: a pass needs three matrix products per captured weight and token (forward, input gradient, weight
gradient; 2 FLOP each) and two per head weight, whatever the implementation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tomfisher
from tomfisher.benchmarks.harness import interleave, matmul_rate, record, summary
from tomfisher.fisher import select_parameters
from tomfisher.models import load_model
from tomfisher.sample import Sample
from tomfisher.tasks import corpus


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the record; with --memory_of, print the peak memory of one contender instead."""
    model, samples = _inputs(args)
    contenders = _contenders(model, samples, args.tokens_per_batch)
    if args.memory_of:
        _reset_peak()
        contenders[args.memory_of]()
        print(json.dumps({"contender": args.memory_of, "peak": _peak_bytes()}))
        return {}
    seconds = interleave(contenders, args.rounds)
    results: dict[str, Any] = summary(seconds, baseline="loop")
    floor = _flop(model, samples) / matmul_rate(torch.float32)
    for name in contenders:
        results[name]["peak_memory_bytes"] = _peak_in_fresh_process(name, args)
        results[name]["times_floor"] = results[name]["median_s"] / floor
    ours, loop = results["tomfisher"], results["loop"]
    results["floor_s"] = floor
    results["peak_memory_ratio"] = ours["peak_memory_bytes"] / loop["peak_memory_bytes"]
    results["largest_relative_difference"] = _difference(*(c() for c in contenders.values()))
    settings = {
        k: v
        for k, v in vars(args).items()
        if k in ("model", "samples", "length", "rounds", "tokens_per_batch")
    }
    return record("fisher", settings, results)


def report(result: dict[str, Any]) -> str:
    """The record as a few lines."""
    results = result["results"]
    lines = [f"{'':12} {'median s':>9} {'x loop':>7} {'x floor':>8} {'peak GiB':>9}"]
    for name in ("loop", "tomfisher"):
        row = results[name]
        lines.append(
            f"{name:12} {row['median_s']:9.2f} {row['speed_vs_loop']:7.2f} {row['times_floor']:8.2f} "
            f"{row['peak_memory_bytes'] / 2**30:9.2f}"
        )
    lines.append(f"largest relative difference: {results['largest_relative_difference']:.1e}")
    return "\n".join(lines)


def paper_loop(model: nn.Module, samples: list[Sample]) -> dict[str, Tensor]:
    """The paper's way in float32: one sample per backward pass, gradients squared by a hook, summed in `.grad`."""
    selection = select_parameters(model, "decoder-linear")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    handles = [p.requires_grad_(True).register_hook(torch.square) for p in selection.values()]
    for sample in samples:
        model(input_ids=sample.input_ids[None], labels=sample.labels[None], use_cache=False).loss.backward()
    F = {name: p.grad for name, p in selection.items() if p.grad is not None}
    for handle in handles:
        handle.remove()
    for parameter in selection.values():
        parameter.grad = None
    return F


def _contenders(model: nn.Module, samples: list[Sample], budget: str) -> dict[str, Callable[[], Any]]:
    tokens = budget if budget == "auto" else int(budget)
    return {
        "loop": lambda: paper_loop(model, samples),
        "tomfisher": lambda: tomfisher.fisher_diagonal(
            model, samples, tokens_per_batch=tokens, progress=False
        ),
    }


def _inputs(args: argparse.Namespace) -> tuple[nn.Module, list[Sample]]:
    loaded = load_model(args.model, dtype="fp32")
    text = corpus.load("testbed" if args.model.startswith("testbed") else "python-reference")
    return loaded.model, corpus.windows(loaded.tokenizer, text, length=args.length, n=args.samples)


def _flop(model: nn.Module, samples: list[Sample]) -> float:
    weights = sum(p.numel() for p in select_parameters(model, "decoder-linear").values())
    head = model.get_output_embeddings().weight.numel()  # type: ignore[operator]
    return 2.0 * (3 * weights + 2 * head) * sum(len(s) for s in samples)


def _difference(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> float:
    return max(float((actual[n] - F).abs().max() / F.abs().max()) for n, F in expected.items())


def _reset_peak() -> None:
    """Forget the peak of loading the model, which is higher than that of the run (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _peak_in_fresh_process(name: str, args: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "tomfisher.cli.main", "bench", "fisher", "--memory_of", name]
    for key in ("model", "length", "tokens_per_batch"):
        command += [f"--{key}", str(getattr(args, key))]
    # eight samples reach the peak: every pass of the run needs the same memory
    command += ["--samples", str(min(8, args.samples))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])
