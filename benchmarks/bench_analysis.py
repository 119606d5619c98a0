"""What looking inside costs: RoPE spectrum and attention sinks against the forward passes alone, and the report.

The forward passes run over the same prompts in the same padded batches, for one position's logits each. Before
anything is timed, sinks are compared with the attention weights that the model itself gives out, and the sums over
the rotary pairs with the norms of its queries and keys.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tomfisher import tasks
from tomfisher.analysis.analyze import PARTS, Analysis, analyze
from tomfisher.analysis.collect import watching
from tomfisher.benchmarks import memory, models, plots
from tomfisher.benchmarks.harness import Contender, interleave, quantiles, record, summary
from tomfisher.benchmarks.tables import SPEED, TIME, Column, render, shown
from tomfisher.models import load_model
from tomfisher.models.families import describe
from tomfisher.models.load import resolve_device
from tomfisher.models.queries import QueryKey
from tomfisher.runtime.batches import plan_batches
from tomfisher.runtime.onednn import by_onednn
from tomfisher.tasks.encode import encode

FORWARD = "forward passes alone"
BOTH = "spectrum and sinks"
TOLERANCE = {"fp32": 1e-4, "bf16": 0.03, "fp16": 0.01}
TARGET_RATIO, TARGET_REPORT_S, TARGET_REPORT_BYTES = 1.5, 15.0, 5_000_000
RATIO = Column("x passes", "times_floor.median")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check, time, measure memory and return the record."""
    device = str(resolve_device(args.device))
    counts = sorted({int(text) for text in args.memory_prompts.split(",")}) if args.memory else []
    loaded = load_model(args.model, dtype=args.dtype, device=device)
    task = args.task or models.task_of(args.model)
    prompts = _prompts(loaded.tokenizer, task, max(args.prompts, *counts) if counts else args.prompts)
    model, timed = loaded.model, prompts[: args.prompts]
    errors = check(model, timed[:4], TOLERANCE[args.dtype])
    contenders: dict[str, Callable[[], object]] = {
        FORWARD: partial(forward, model, timed, args.tokens_per_batch),
        BOTH: partial(_analyze, model, timed, args.tokens_per_batch),
        **{f"{part} only": partial(_analyze, model, timed, args.tokens_per_batch, (part,)) for part in PARTS},
    }
    timings = interleave({name: Contender(call) for name, call in contenders.items()}, args.rounds, device)
    tokens = sum(map(len, timed))
    case = {
        "name": f"{args.model}, {len(timed)} prompts of {task}, {tokens} tokens, {args.dtype} on {device}",
        "baseline": FORWARD,
        "contenders": summary(timings, FORWARD, FORWARD),
        "absent": timings.absent,
        "notes": [f"largest difference from a direct computation: {errors['sinks']:.1e} of an attention mass, "
                  f"{errors['rope']:.1e} relative of a norm"],
    }  # fmt: skip
    results: dict[str, Any] = {
        "cases": [case],
        "errors": errors,
        "memory": over_prompts(model, prompts, counts, device),
        "report": None if args.report is None else report_of(args.report, args.rounds),
        "targets": {
            "ratio": TARGET_RATIO, "report_seconds": TARGET_REPORT_S, "report_bytes": TARGET_REPORT_BYTES
        },
    }  # fmt: skip
    settings = {
        key: getattr(args, key) for key in ("model", "dtype", "prompts", "tokens_per_batch", "rounds")
    }
    return record("analysis", {**settings, "task": task}, results, device)


def report(result: dict[str, Any]) -> str:
    """The table of times, and a line each for memory and the report."""
    results = result["results"]
    lines = [render(results["cases"], (*TIME, SPEED, RATIO))]
    ratio = results["cases"][0]["contenders"][BOTH]["times_floor"]["median"]
    lines.append(f"{BOTH}: {ratio:.2f} times {FORWARD} (target: {results['targets']['ratio']} at most)")
    memory_ = results["memory"]
    if memory_ is not None:
        lines.append(f"peak extra memory, batches of {memory_['tokens_per_batch']} tokens at most:")
        for point in memory_["points"]:
            cells = (shown(point[key], "MiB") for key in ("analysis", "forward"))
            lines.append("  {:>5} prompts  {:>12}, passes alone {:>12}".format(point["prompts"], *cells))
    if results["report"] is not None:
        said = results["report"]
        lines.append(
            f"report of {said['run']}: {shown(said['seconds']['median'], 's')}, {said['bytes'] / 1e6:.2f} MB "
            f"(targets: {results['targets']['report_seconds']:g} s, {results['targets']['report_bytes'] / 1e6:g} MB)"
        )
    return "\n".join(lines)


def plot(result: dict[str, Any], path: str) -> None:
    """Times as multiples of the forward passes."""
    cases = result["results"]["cases"]
    plots.bars(cases, path, "times_floor.median", "x forward passes", "Looking inside", line=1.0)


def forward(model: Any, prompts: Sequence[list[int]], tokens_per_batch: int) -> None:
    """What any analysis has to run: every prompt once, padded on the right, no gradients, one position's logits."""
    device = next(model.parameters()).device
    with torch.no_grad(), by_onednn(model):
        for batch in plan_batches([len(prompt) for prompt in prompts], tokens_per_batch):
            rows = [prompts[i] for i in batch]
            longest = max(map(len, rows))
            ids = torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows], device=device)
            model(input_ids=ids, use_cache=False, logits_to_keep=1)


def check(model: Any, prompts: Sequence[list[int]], tolerance: float) -> dict[str, float]:
    """Largest differences of the analysis from a direct computation, one prompt at a time.

    Args:
        model: on which both run.
        prompts: a few.
        tolerance: of either difference.

    Returns:
        "sinks": of the mean attention to the first token, from the weights that the model gives out; "rope": of the
        mean energies summed over the pairs of a head, relative, from q and k themselves.

    Raises:
        RuntimeError: a difference above the tolerance.
    """
    measured = _analyze(model, prompts).results
    masses, energies = _direct(model, prompts)
    sinks = max(
        float((layer.first_mass - masses[layer.layer]).abs().max()) for layer in measured["sinks"].layers
    )
    rope = 0.0
    for layer in measured["rope"].layers:
        for part in ("q", "k"):
            expected = energies[layer.layer, part]
            rope = max(rope, float((layer.energy(part).sum(-1) / expected - 1).abs().max()))
    if not max(sinks, rope) <= tolerance:
        raise RuntimeError(
            f"The analysis is wrong: sinks differ by {sinks:.1e}, the spectrum by {rope:.1e} relative; allowed is "
            f"{tolerance:g}."
        )
    return {"sinks": sinks, "rope": rope}


def over_prompts(
    model: Any, prompts: Sequence[list[int]], counts: Sequence[int], device: str
) -> dict[str, Any] | None:
    """Peak extra memory of the analysis and of the passes alone at rising numbers of prompts.

    The longest prompts come first in every count, and a batch holds no more tokens than the smallest count has in all:
    so the largest batch is the same, and what grows with the prompts shows.
    """
    if not counts:
        return None
    ordered = sorted(prompts, key=len, reverse=True)
    budget = min(4096, sum(map(len, ordered[: counts[0]])))
    points = []
    for count in counts:
        chosen = ordered[:count]
        points.append(
            {
                "prompts": count,
                "tokens": sum(map(len, chosen)),
                "analysis": memory.peak_extra_bytes(partial(_analyze, model, chosen, budget), device),
                "forward": memory.peak_extra_bytes(partial(forward, model, chosen, budget), device),
            }
        )
    return {"tokens_per_batch": budget, "points": points}


def report_of(run_folder: str, rounds: int) -> dict[str, Any]:
    """Wall time of `tomfisher report` in a process of its own, start included, and the size of the page.

    Args:
        run_folder: of a study; its figures are written again, the page goes elsewhere.
        rounds: how often.
    """
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "report.html"
        command = [
            sys.executable,
            "-m",
            "tomfisher.cli.main",
            "report",
            run_folder,
            "--output_path",
            str(page),
        ]

        def write() -> None:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"The report of {run_folder} failed: {done.stderr.strip()[-500:]}")

        seconds = interleave({"report": Contender(write)}, rounds, desc="Report").seconds["report"]
        return {"run": Path(run_folder).name, "seconds": quantiles(seconds), "bytes": page.stat().st_size}


def _prompts(tokenizer: Any, task: str, count: int) -> list[list[int]]:
    texts = [story.prompt for story in tasks.load(task, n=count)][:count]
    return [sample.input_ids.tolist() for sample in encode(tokenizer, texts, supervise="all")]


def _analyze(
    model: Any, prompts: Sequence[list[int]], tokens_per_batch: int = 4096, parts: Sequence[str] = PARTS
) -> Analysis:
    analysis = analyze(model, prompts, parts, tokens_per_batch=tokens_per_batch, progress=False)
    if analysis.unavailable:
        raise ValueError(
            f"This model cannot be compared: {' '.join(analysis.unavailable.values())} Give a model with RoPE."
        )
    return analysis


def _direct(
    model: Any, prompts: Sequence[list[int]]
) -> tuple[dict[int, Tensor], dict[tuple[int, str], Tensor]]:
    """Mean attention to the first token `[H]`, and mean squared norm of the rotated part of q and k `[heads]`."""
    architecture = describe(model)
    device, before = next(model.parameters()).device, model.config._attn_implementation
    masses: dict[int, Tensor] = {}
    energies: dict[tuple[int, str], Tensor] = {}

    def look(layer: int, seen: QueryKey) -> None:
        rotary = architecture.attention[layer].rotary
        if rotary is None:
            return
        dims = rotary.pairs.flatten().to(seen.q.device)
        for part, x in (("q", seen.q), ("k", seen.k)):
            total = x[0, :, :, dims].double().square().sum((1, 2)).cpu()
            energies[layer, part] = energies.get((layer, part), torch.zeros_like(total)) + total

    model.set_attn_implementation("eager")
    try:
        with torch.no_grad(), watching(architecture, look):
            for prompt in prompts:
                maps = model(
                    input_ids=torch.tensor([prompt], device=device), output_attentions=True
                ).attentions
                for layer, weights in zip(architecture.attention, maps, strict=True):
                    first = weights[0, :, 1:, 0].double().sum(-1).cpu()
                    masses[layer] = masses.get(layer, torch.zeros_like(first)) + first
    finally:
        model.set_attn_implementation(before)
    tokens = sum(map(len, prompts))
    later = tokens - len(prompts)
    return {k: v / later for k, v in masses.items()}, {k: v / tokens for k, v in energies.items()}
