"""Side-by-side timing: contenders interleaved in one process, medians with spread, a record that says where."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tomfisher.files import atomic_path
from tomfisher.progress import progress_bar
from tomfisher.provenance import machine, now, versions

Contender = Callable[[], object]


def interleave(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender, one after another in each round, after one warm-up round.

    Interleaving spreads whatever else the machine does over all contenders; compare ratios, not seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in progress_bar(range(rounds + 1), desc="Benchmark", unit="round"):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: Mapping[str, list[float]], baseline: str) -> dict[str, dict[str, float]]:
    """Median, extremes, and the median over rounds of the ratio to `baseline` within the same round."""
    found = {}
    for name, values in seconds.items():
        ratios = [base / own for base, own in zip(seconds[baseline], values, strict=True)]
        found[name] = {
            "median_s": statistics.median(values),
            "min_s": min(values),
            "max_s": max(values),
            f"speed_vs_{baseline}": statistics.median(ratios),
            f"speed_vs_{baseline}_min": min(ratios),
            f"speed_vs_{baseline}_max": max(ratios),
        }
    return found


def matmul_rate(dtype: torch.dtype, size: int = 1024, rounds: int = 5) -> float:
    """Best measured FLOP/s of a square matrix product: what the floor of a GEMM-bound job is computed from."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(rounds + 1):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def record(name: str, settings: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Results with the device, versions, commit, command and time they belong to."""
    return {
        "benchmark": name,
        "settings": dict(settings),
        "results": dict(results),
        "machine": machine(),
        "versions": versions(),
        "command": "tomfisher " + " ".join(sys.argv[1:]),
        "date": now(),
    }


def save(result: Mapping[str, Any], path: str | Path) -> None:
    """Write a record as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
