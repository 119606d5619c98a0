"""Side-by-side timing: contenders interleaved in one process, medians with spread, a record that says where."""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tomfisher.benchmarks.verification import kernel_sources_sha256
from tomfisher.files import atomic_path
from tomfisher.progress import progress_bar
from tomfisher.provenance import machine, now, versions
from tomfisher.runtime.memory import release
from tomfisher.runtime.onednn import outruns_mkl, product

PEERS = ("backpack-for-pytorch", "opacus", "opt-einsum")
FLUSH_BYTES = 256 << 20  # larger than the L2 cache of any GPU in `gpus`
SLEEP_CYCLES = 40_000_000  # about 20 ms of a GPU: longer than the host takes to launch what is timed
_MATMUL_SIZES = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Contender:
    """One thing that is timed.

    Attributes:
        run: what is timed.
        prepare: called before every run, outside the timed part.
        peer: somebody else's way. Where it fails or does not fit, the record says why and the benchmark goes
            on; a failure of ours stops it.
    """

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    peer: bool = False


@dataclass
class Timings:
    """Seconds of every contender per round, and why the others have none."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def interleave(
    contenders: Mapping[str, Contender],
    rounds: int,
    device: torch.device | str = "cpu",
    warmup: bool = True,
    desc: str = "Benchmark",
    patience_s: float = math.inf,
) -> Timings:
    """Time every contender, one after another in each round, so that a noisy machine is noisy for all alike.

    Compare ratios within a round, not seconds. On CUDA the time is the GPU's, between two events, and what the
    previous contender left in the L2 cache is overwritten first.

    Args:
        contenders: name to contender.
        rounds: timed rounds.
        device: where the contenders work.
        warmup: run everything once before the first timed round.
        desc: label of the progress bar.
        patience_s: where the warm-up takes longer than this, it counts as the contender's only round.

    Returns:
        The seconds, and the peers that failed with the reason.
    """
    clock = _CudaClock(torch.device(device)) if torch.device(device).type == "cuda" else _cpu_clock
    timings = Timings({name: [] for name in contenders})
    once: set[str] = set()
    for turn in progress_bar(range(-int(warmup), rounds), desc=desc, unit="round"):
        for name in [name for name in timings.seconds if name not in once]:
            contender = contenders[name]
            try:
                if contender.prepare is not None:
                    contender.prepare()
                seconds = clock(contender.run)
            except Exception as error:
                if not contender.peer:
                    raise
                del timings.seconds[name]
                timings.absent[name] = reason(error)
                release()
                continue
            if turn < 0 and seconds > patience_s:
                once.add(name)
            if turn >= 0 or name in once:
                timings.seconds[name].append(seconds)
    return timings


def reason(error: BaseException) -> str:
    """An error in one line of at most 200 characters."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:200].removesuffix(": ")


def summary(
    timings: Timings, baseline: str | None = None, floor: str | float | None = None
) -> dict[str, dict[str, Any]]:
    """Statistics of every contender.

    Args:
        timings: from `interleave`.
        baseline: contender that speeds are ratios to, within the same round (of a contender that has one round
            only: the first).
        floor: contender, or seconds, that nothing can be faster than.

    Returns:
        Name to `{"seconds": quantiles, "speed": quantiles, "times_floor": quantiles}`; quantiles are
        `{"median", "q20", "q80", "min", "max", "rounds"}`. `speed` above 1 is faster than the baseline.
    """
    rows_of: dict[str, dict[str, Any]] = {}
    for name, own in timings.seconds.items():
        row: dict[str, Any] = {"seconds": quantiles(own)}
        if baseline in timings.seconds:
            row["speed"] = quantiles([a / b for a, b in zip(timings.seconds[baseline], own, strict=False)])
        if isinstance(floor, str) and floor in timings.seconds:
            row["times_floor"] = quantiles([a / b for a, b in zip(own, timings.seconds[floor], strict=False)])
        elif isinstance(floor, float):
            row["times_floor"] = quantiles([own_s / floor for own_s in own])
        rows_of[name] = row
    return rows_of


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile, extremes and count."""
    ordered = sorted(values)

    def at(part: float) -> float:
        return ordered[round(part * (len(ordered) - 1))]

    return {
        "median": statistics.median(ordered),
        "q20": at(0.2),
        "q80": at(0.8),
        "min": ordered[0],
        "max": ordered[-1],
        "rounds": len(ordered),
    }


def matmul_rate(
    dtype: torch.dtype, device: torch.device | str = "cpu", size: int | None = None, rounds: int = 10
) -> float:
    """Best measured FLOP/s of a square matrix product: what the floor of a GEMM-bound job is computed from.

    In float32 on the CPU that of oneDNN too, where the Fisher uses it.
    """
    place = torch.device(device)
    size = size or _MATMUL_SIZES.get(place.type, 1024)
    a, b = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
    ways = {"mm": Contender(lambda: torch.mm(a, b))}
    if (dtype, place.type) == (torch.float32, "cpu") and outruns_mkl():
        ways["onednn"] = Contender(lambda: product(a, b))
    timings = interleave(ways, rounds, place, desc="Matmul rate")
    return 2 * size**3 / min(min(seconds) for seconds in timings.seconds.values())


def record(
    name: str,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Results with the device, versions, commit, kernel sources, command and time they belong to.

    Whether the kernels have been verified, or have changed since, is no part of it: `verification.status`
    computes that from the checksums whenever it is asked.
    """
    return {
        "benchmark": name,
        "settings": dict(settings),
        "results": dict(results),
        "machine": machine(device),
        "versions": {**versions(), **_peer_versions()},
        "kernel_sources": kernel_sources_sha256(),
        "command": "tomfisher " + " ".join(sys.argv[1:]),
        "date": now(),
    }


def gathered(
    name: str,
    settings: Mapping[str, Any],
    cases: Iterable[Mapping[str, Any]],
    device: torch.device | str = "cpu",
    folder: str | Path | None = None,
) -> dict[str, Any]:
    """A record of cases; each is also written on its own as soon as it is there, so that a kill loses one case.

    Args:
        name: of the benchmark.
        settings: of its command.
        cases: `{"name", "contenders", "absent"}`, as `tables.render` takes them; consumed one by one.
        device: where they are measured.
        folder: receives `NAME.CASE.json`, a record with one case; None: keep none.
    """
    kept = []
    for case in cases:
        kept.append(case)
        if folder is not None:
            readable = re.sub(r"[^A-Za-z0-9.~-]+", "-", str(case["name"])).strip("-")
            save(record(name, settings, {"cases": [case]}, device), Path(folder) / f"{name}.{readable}.json")
    return record(name, settings, {"cases": kept}, device)


def save(result: Mapping[str, Any], path: str | Path) -> None:
    """Write a record as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _cpu_clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class _CudaClock:
    """Seconds of GPU time of one call, from a cold L2 cache.

    The GPU sleeps before the first event, so that the host has launched the call when it begins: what a short kernel
    costs the host is not charged to it. A call that itself waits for the GPU is timed as it is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, run: Callable[[], object]) -> float:
        with torch.cuda.device(self._device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            self._flush.zero_()
            torch.cuda._sleep(SLEEP_CYCLES)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3


def _peer_versions() -> dict[str, str]:
    installed = {}
    for name in PEERS:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
