"""How cost grows: Fisher over samples, tokens and parameters, top-k over length and threads.

The points of an axis are the contenders: measured in turn, round by round, so that a busy machine bends no curve.
Every axis gets the exponent of a power law fitted to its medians (1 is linear), and a straight line: a fixed cost
(for Fisher mostly the probe) and a cost per unit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

import tomfisher
from tomfisher.benchmarks import models, plots, topk_data
from tomfisher.benchmarks.bench_fisher import peak_in_fresh_process
from tomfisher.benchmarks.harness import Contender, interleave, quantiles, record
from tomfisher.benchmarks.tables import shown
from tomfisher.fisher import select_parameters
from tomfisher.masks.fraction import count
from tomfisher.ops import topk


class Axes(NamedTuple):
    """What is varied.

    Attributes:
        model: of the first two axes.
        samples: numbers of samples, of `length` tokens.
        length: tokens per sample while samples or parameters vary.
        lengths: tokens per sample, at `few` samples.
        few: samples while lengths or parameters vary.
        models: of the third axis; names in `models.CONFIGS` have random weights.
        n: values of top-k.
        threads: of top-k.
    """

    model: str
    samples: tuple[int, ...]
    length: int
    lengths: tuple[int, ...]
    few: int
    models: tuple[str, ...]
    n: tuple[int, ...]
    threads: tuple[int, ...]


FULL = Axes(
    "smollm2-135m",
    (8, 16, 32, 64, 128, 256, 512),
    32,
    (32, 64, 128, 256, 512, 1024),
    8,
    ("testbed-llama", "smollm2-135m", "llama-360m"),
    (10**6, 10**7, 10**8, 10**9, 2 * 10**9),
    (1, 2),
)
QUICK = Axes("tiny", (2, 4), 8, (8, 16), 2, ("tiny", "testbed-llama"), (10_000, 20_000), (1, 2))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every axis and return the record."""
    axes = QUICK if args.quick else FULL
    wanted = args.axes.split(",")
    makers: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "samples": lambda: [over_samples(axes, args)],
        "length": lambda: [over_length(axes, args)],
        "parameters": lambda: [over_parameters(axes, args)],
        "topk": lambda: over_topk(axes, args),
    }
    if set(wanted) - set(makers):
        raise ValueError(f"axes must be among {', '.join(makers)}, got {args.axes!r}.")
    measured = [axis for name in wanted for axis in makers[name]()]
    settings = {**axes._asdict(), "rounds": args.rounds, "kappa": args.kappa, "tokens_per_batch": "auto"}
    return record("growth", settings, {"axes": measured})


def report(result: dict[str, Any]) -> str:
    """A block per axis: its points, and the fitted exponents."""
    blocks = []
    for axis in result["results"]["axes"]:
        lines = [f"{axis['name']}: time like ({axis['x']})^{axis['exponent']:.2f}"]
        if axis["memory_exponent"] is not None:
            lines[0] += f", peak memory like ({axis['x']})^{axis['memory_exponent']:.2f}"
        lines.append(f"  straight line: {axis['fixed_s']:.3g} s + {axis['per_unit_s']:.3g} s per unit")
        for point in axis["points"]:
            memory = shown(point["peak_memory_bytes"], "GiB")
            lines.append(
                f"  {point['label']:>24}  {point['x']:>14,}  {shown(point['seconds']['median'], 's'):>12}  {memory:>10}"
            )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def plot(result: dict[str, Any], path: str) -> None:
    """Time per axis, and the line that a linear cost would follow."""
    panels: dict[str, dict[str, Any]] = {}
    for axis in result["results"]["axes"]:
        points = [(p["x"], p["seconds"]["median"]) for p in axis["points"]]
        panel = panels.setdefault(
            axis["group"], {"title": axis["group"], "x": axis["x"], "y": "seconds", "series": {}}
        )
        panel["series"][f"{axis['name']}: {axis['exponent']:.2f}"] = points
        first = min(points)
        panel["series"].setdefault(plots.LINEAR, [(x, first[1] * x / first[0]) for x, _ in points])
    plots.curves(list(panels.values()), path, "Growth of cost (exponents in the legend)")


def over_samples(axes: Axes, args: argparse.Namespace) -> dict[str, Any]:
    """Fisher of more and more samples."""
    model, samples = _inputs(axes.model, max(axes.samples), axes.length)
    passes = {n: partial(_fisher, model, samples[:n]) for n in axes.samples}
    memory = {n: _memory(args, axes.model, n, axes.length) for n in axes.samples}
    name = f"Fisher, {axes.model}, samples of {axes.length} tokens"
    return _axis(name, "samples", passes, memory, args.rounds)


def over_length(axes: Axes, args: argparse.Namespace) -> dict[str, Any]:
    """Fisher of longer and longer samples."""
    passes, memory = {}, {}
    model, _ = _inputs(axes.model, 1, min(axes.lengths))
    for length in axes.lengths:
        _, samples = _inputs(axes.model, axes.few, length)
        passes[length] = partial(_fisher, model, samples)
        memory[length] = _memory(args, axes.model, axes.few, length)
    return _axis(
        f"Fisher, {axes.model}, {axes.few} samples", "tokens per sample", passes, memory, args.rounds
    )


def over_parameters(axes: Axes, args: argparse.Namespace) -> dict[str, Any]:
    """Fisher of larger and larger models, over the number of their decoder weights."""
    passes, memory, labels = {}, {}, {}
    for name in axes.models:
        model, samples = _inputs(name, axes.few, axes.length)
        weights = sum(p.numel() for p in select_parameters(model, "decoder-linear").values())
        passes[weights] = partial(_fisher, model, samples)
        memory[weights] = _memory(args, name, axes.few, axes.length)
        labels[weights] = name
    name = f"Fisher, {axes.few} samples of {axes.length} tokens"
    return _axis(name, "decoder weights", passes, memory, args.rounds, labels)


def over_topk(axes: Axes, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Top-k of more and more values, on each number of threads."""
    before = torch.get_num_threads()
    values = topk_data.values("lognormal", max(axes.n))
    try:
        series = []
        for threads in axes.threads:
            torch.set_num_threads(threads)
            passes = {n: partial(topk, values[:n], count(args.kappa, n)) for n in axes.n}
            name = f"top-k, {threads} thread{'s' if threads > 1 else ''}"
            series.append(_axis(name, "values", passes, {}, max(args.rounds, 3), group="top-k"))
        return series
    finally:
        torch.set_num_threads(before)


def exponent(points: list[tuple[float, float]]) -> float:
    """Slope of the straight line through the logarithms, by least squares."""
    x, y = np.log(np.asarray(points, dtype=np.float64)).T
    return float(np.polyfit(x, y, 1)[0])


def line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Fixed cost and cost per unit of the straight line with the least squared relative error."""
    x, y = np.asarray(points, dtype=np.float64).T
    slope, intercept = np.polyfit(x, y, 1, w=1 / y)
    return float(intercept), float(slope)


def _axis(
    name: str,
    x: str,
    passes: Mapping[int, Callable[[], object]],
    memory: dict[int, int | None],
    rounds: int,
    labels: dict[int, str] | None = None,
    group: str = "",
) -> dict[str, Any]:
    timed = {str(at): Contender(run_pass) for at, run_pass in passes.items()}
    seconds = interleave(timed, rounds, desc=name).seconds
    points = [
        {
            "x": at,
            "label": (labels or {}).get(at, ""),
            "seconds": quantiles(seconds[str(at)]),
            "peak_memory_bytes": memory.get(at),
        }
        for at in passes
    ]
    medians = [(float(p["x"]), p["seconds"]["median"]) for p in points]
    fixed, each = line(medians)
    known = [(float(at), float(bytes_)) for at, bytes_ in memory.items() if bytes_]
    return {
        "name": name,
        "group": group or name,
        "x": x,
        "points": points,
        "exponent": exponent(medians),
        "fixed_s": fixed,
        "per_unit_s": each,
        "memory_exponent": exponent(known) if len(known) > 1 else None,
    }


def _inputs(name: str, samples: int, length: int) -> Any:
    config = name if name in models.CONFIGS else None
    return models.inputs(name, config, "fp32", "cpu", samples, length)


def _fisher(model: Any, samples: Any) -> None:
    tomfisher.fisher_diagonal(model, samples, progress=False)


def _memory(args: argparse.Namespace, name: str, samples: int, length: int) -> int | None:
    if args.quick or not args.memory:
        return None
    config = name if name in models.CONFIGS else None
    wanted = argparse.Namespace(
        model=name, config=config, dtype="fp32", impl="auto", length=length, tokens_per_batch="auto", peer_batch=1,
    )  # fmt: skip
    return peak_in_fresh_process("tomfisher", wanted, samples)
