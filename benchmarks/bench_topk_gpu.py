"""Exact top-k on a GPU of as many values as a model has weights, against `torch.topk` and one read of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tomfisher.benchmarks import memory, plots, topk_data
from tomfisher.benchmarks.harness import Contender, gathered, interleave, summary
from tomfisher.benchmarks.tables import FLOOR, SPEED, TIME, Column, render
from tomfisher.masks.fraction import count
from tomfisher.ops import topk, topk_across
from tomfisher.runtime import gpus

SUM, BASELINE = "read sum", "torch.topk"
TENSORS = 224  # weight matrices of the decoder of Llama-3-8B
COLUMNS = (
    *TIME,
    SPEED,
    FLOOR,
    Column("GB/s", "gb_per_s", ".0f"),
    Column("extra mem.", "peak_extra_bytes", "MiB"),
)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every distribution and κ; without a GPU, print what would run."""
    if not torch.cuda.is_available():
        print(plan(args))
        return {}
    device = torch.device(args.device or "cuda")
    settings = {key: getattr(args, key) for key in ("n", "kappa", "distributions", "rounds", "patience")}
    return gathered("topk_gpu", settings, _cases(args, device), device, args.cases_path)


def _cases(args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    for name in args.distributions.split(","):
        values = topk_data.values(name, args.n, args.store, device)
        for kappa in args.kappa:
            yield measure(name, values, kappa, args)
        del values


def report(result: dict[str, Any]) -> str:
    """The record as tables."""
    return render(result["results"]["cases"], COLUMNS)


def plot(result: dict[str, Any], path: str) -> None:
    """Time over the time of reading once."""
    cases = result["results"]["cases"]
    plots.bars(cases, path, "times_floor.median", "time / reading once", "Exact top-k on a GPU", line=1.0)


def measure(name: str, values: Tensor, kappa: float, args: argparse.Namespace) -> dict[str, Any]:
    """One vector and one κ."""
    n, device = values.numel(), values.device
    k = count(kappa, n)
    parts = values.tensor_split(TENSORS)
    contenders = {
        SUM: Contender(values.sum),
        "tomfisher triton": Contender(partial(topk, values, k, impl="triton")),
        f"tomfisher triton, {TENSORS} tensors": Contender(partial(topk_across, parts, k, impl="triton")),
        BASELINE: Contender(partial(torch.topk, values, k), peer=True),
    }
    label = f"{name}, n = {n:g}, κ = {kappa:g}"
    timings = interleave(contenders, args.rounds, device, desc=label, patience_s=args.patience)
    ours = check(values, k)
    if BASELINE in timings.seconds and not torch.equal(torch.topk(values, k).values, ours):
        del timings.seconds[BASELINE]  # pytorch#173622: wrong above 2^31 values in some versions
        timings.absent[BASELINE] = f"a wrong result of torch {torch.__version__}"
    rows = summary(timings, BASELINE, SUM)
    for way, row in rows.items():
        row["gb_per_s"] = 4e-9 * n / row["seconds"]["median"]
        row["peak_extra_bytes"] = memory.peak_extra_bytes(contenders[way].run, device)
    return {"name": label, "n": n, "k": k, "baseline": BASELINE, "contenders": rows, "absent": timings.absent}


def check(values: Tensor, k: int) -> Tensor:
    """Our values in order; a wrong result of ours is refused: exactly k at or above the threshold up to ties."""
    ours = topk(values, k, impl="triton")
    across = topk_across(values.tensor_split(TENSORS), k, impl="triton")
    above = sum(int((part > ours.threshold).sum()) for part in values.tensor_split(TENSORS))
    right = torch.equal(values[ours.indices], ours.values) and above <= k
    right = (
        right
        and bool((ours.values[1:] <= ours.values[:-1]).all())
        and int(ours.indices.unique().numel()) == k
    )
    right = right and int((ours.values > ours.threshold).sum()) == above
    right = right and torch.equal(across.values, ours.values)
    if not right:
        raise RuntimeError(f"topk is wrong for n = {values.numel()}, k = {k}.")
    return ours.values


def plan(args: argparse.Namespace) -> str:
    """What would run on a GPU, and the time of one read on a named one."""
    gpu = gpus.named(args.gpu)
    kappas = ", ".join(f"{kappa:g}" for kappa in args.kappa)
    return "\n".join(
        (
            f"No CUDA device here. With one, this times tomfisher triton (one vector, and {TENSORS} tensors),",
            f"  {BASELINE} and a sum, on {args.n:g} float32 values ({args.distributions}), κ = {kappas}.",
            f"On {gpu.name}: {4e-9 * args.n:.1f} GB, read once in {4e3 * args.n / gpu.bandwidth:.2f} ms.",
        )
    )
