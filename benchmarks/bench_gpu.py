"""All that a GPU has to show, in three parts of under ten minutes: tests, Fisher, fills and top-k.

Each step is a process of its own with a time limit, and writes its records as it goes: what is killed keeps what it
has measured. Without a GPU the steps that need one say what they would do.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tomfisher.benchmarks.harness import record, save

_PDEATHSIG = 1  # of prctl
PASSED, FAILED, STOPPED, ABSENT = "passed", "failed", "stopped", "no GPU"
LLAMA = ("--config", "llama3-8b", "--samples", "100", "--length", "128")


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: of its log, and of its record.
        command: after `python -m`; "{record}" and "{cases}" are where its record and those of its cases go.
        gpu: whether it needs one.
    """

    name: str
    command: tuple[str, ...]
    gpu: bool = True


def _bench(name: str, *options: str, label: str | None = None) -> Step:
    return Step(label or name, ("tomfisher", "bench", name, *options, "--output_path", "{record}"))


def _timed(name: str, *options: str) -> Step:
    return _bench(name, *options, "--cases_path", "{cases}")


PARTS: dict[str, tuple[Step, ...]] = {
    "tests": (
        _bench("gpu_tests", "--markers", "gpu and not slow and not unverified"),
        Step("compile", ("pytest", "-q", "{parallel}", "tests/kernels/compile"), gpu=False),
    ),
    "fisher": (
        _bench(
            "fisher", *LLAMA, "--contenders", "loop,tomfisher", "--rounds", "2", "--accuracy_samples", "2"
        ),
        _timed("squared_gradient", "--rounds", "10"),
    ),
    "fills": (
        _timed("masked_fill", "--rounds", "5"),
        _timed("topk_gpu", "--rounds", "5", "--patience", "2"),
        _bench("gpu_tests", "--markers", "gpu and slow", label="sanitizer"),
        # last, since a kernel that has never run may hang or break its process
        _bench("gpu_tests", "--markers", "gpu and unverified", label="unverified"),
        _bench("squared_gradient", "--hopper", "--batches", "100x128,8x512", "--rounds", "5", label="hopper"),
    ),
}


@dataclass
class Outcome:
    """How a step ended.

    Attributes:
        step: its name.
        status: "passed", "failed", "stopped" (at the time limit) or "no GPU".
        seconds: that it took.
        log: file with what it printed, in the folder.
        records: files that it wrote there.
    """

    step: str
    status: str
    seconds: float
    log: str
    records: list[str]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the parts that are asked for into the folder `args.out`; after every step `PART.json` says how each ended.

    Raises:
        ValueError: no such part.
    """
    wanted = list(PARTS) if args.part == "all" else args.part.split(",")
    if unknown := [name for name in wanted if name not in PARTS]:
        raise ValueError(f"part must be all or among {', '.join(PARTS)}; got {', '.join(unknown)}.")
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = {"part": args.part, "limit": args.limit}
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
    with _terminated_as_interrupted():
        for name, outcomes in parts.items():
            ends = time.monotonic() + args.limit
            for step in PARTS[name]:
                outcomes.append(asdict(_run(step, folder, ends - time.monotonic(), device)))
                save(record("gpu", settings, {"parts": {name: outcomes}}, device), folder / f"{name}.json")
    return record("gpu", settings, {"parts": parts}, device)


def report(result: dict[str, Any]) -> str:
    """A line per step."""
    lines = []
    for part, outcomes in result["results"]["parts"].items():
        lines.append(part)
        for end in outcomes:
            records = f", {len(end['records'])} records" if end["records"] else ""
            lines.append(
                f"  {end['step']:17} {end['status']:8} {end['seconds']:6.0f} s{records}; log: {end['log']}"
            )
    return "\n".join(lines)


def exit_code(result: dict[str, Any]) -> int:
    """1 where a step failed or was stopped."""
    ends = [end["status"] for outcomes in result["results"]["parts"].values() for end in outcomes]
    return int(any(status in (FAILED, STOPPED) for status in ends))


def _run(step: Step, folder: Path, seconds: float, device: str) -> Outcome:
    before = _records(folder)
    log = folder / f"{step.name}.log"
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        status = _status(_command(step, folder), out, seconds)
    if step.gpu and device == "cpu" and status == PASSED:
        status = ABSENT
    new = sorted(name for name, when in _records(folder).items() if before.get(name) != when)
    return Outcome(step.name, status, time.monotonic() - started, log.name, new)


def _status(command: Sequence[str], out: Any, seconds: float) -> str:
    """Run a command; one that exceeds its time is ended, with the processes that it has begun."""
    if seconds <= 0:
        return STOPPED
    process = subprocess.Popen(
        command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_end_with_parent
    )
    try:
        return PASSED if process.wait(seconds) == 0 else FAILED
    except subprocess.TimeoutExpired:
        return STOPPED
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()


def _end_with_parent() -> None:
    """In a child on Linux: be killed when the parent is, which then can end nobody."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the block as an exception does, so that the running step is ended too."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _command(step: Step, folder: Path) -> list[str]:
    places = {"{record}": str(folder / f"{step.name}.json"), "{cases}": str(folder / step.name)}
    workers = ["-n", str(os.cpu_count())] if importlib.util.find_spec("xdist") else []
    words = [
        word
        for part in step.command
        for word in (workers if part == "{parallel}" else [places.get(part, part)])
    ]
    return [sys.executable, "-m", *words]


def _records(folder: Path) -> dict[str, int]:
    """Every record below the folder, and when it was written."""
    files = [file for file in folder.rglob("*.json") if file.stem not in PARTS]
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in files}
