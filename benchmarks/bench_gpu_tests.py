"""The GPU tests with a record of what passed, on which GPU, on which sources: what `--status` is computed from."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tomfisher.benchmarks.harness import record, save
from tomfisher.benchmarks.launch_log import VARIABLE
from tomfisher.benchmarks.verification import kernel_sources_sha256

POLL_S = 1.0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the GPU tests in a process of its own and return their record; without a GPU, say what would run.

    The record is written after every test, where it has a place.

    Raises:
        FileNotFoundError: there are no tests.
        ValueError: pytest ended without a test, or the sources changed meanwhile.
    """
    tests = Path(args.tests)
    if not tests.exists():
        raise FileNotFoundError(f"No tests at {tests}: run this in a source checkout, or give --tests.")
    command = _command(tests, args.markers)
    if not torch.cuda.is_available():
        print(f"No CUDA device here. On a machine with one, this runs: {' '.join(command)}")
        return {}
    sources = kernel_sources_sha256()

    def recorded(counts: dict[str, Any]) -> dict[str, Any]:
        settings = {"tests": str(args.tests), "markers": args.markers}
        return {**record("gpu_tests", settings, {"gpu_tests": counts}, "cuda"), "kernel_sources": sources}

    def keep(counts: dict[str, Any]) -> None:
        if args.output_path:
            save(recorded(counts), args.output_path)

    counts = launches(command, keep)
    if kernel_sources_sha256() != sources:
        raise ValueError("The kernel sources changed while their tests ran. Run the tests again.")
    return recorded(counts)


def report(result: dict[str, Any]) -> str:
    """Counts, and the kernels that were launched."""
    counts = result["results"]["gpu_tests"]
    words = f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
    lines = [f"GPU tests on {result['machine']['gpu']}: {words}"]
    lines += [
        f"  {name}: {n['passed']} passed, {n['failed']} failed" for name, n in counts["kernels"].items()
    ]
    return "\n".join(lines)


def exit_code(result: dict[str, Any]) -> int:
    """1 where a test failed, or pytest ended as it does only then."""
    counts = result["results"]["gpu_tests"]
    return int(counts["failed"] > 0 or counts["pytest"] != 0)


def launches(
    command: list[str], keep: Callable[[dict[str, Any]], None] = lambda counts: None
) -> dict[str, Any]:
    """What `launch_log` noted during a pytest command, and the code that it ended with.

    Args:
        command: of pytest, with the plugin.
        keep: called with the counts so far whenever a test has ended; their code is None.

    Raises:
        ValueError: pytest ended before the first test, as it does after errors of collection.
    """
    with tempfile.TemporaryDirectory() as folder:
        log, seen = Path(folder) / "launches.json", 0
        process = subprocess.Popen(command, env={**os.environ, VARIABLE: str(log)}, stdout=sys.stderr)
        try:
            while process.poll() is None:
                counts = _read(log)
                if sum(counts[name] for name in ("passed", "failed", "skipped")) > seen:
                    seen = sum(counts[name] for name in ("passed", "failed", "skipped"))
                    keep({**counts, "pytest": None})
                try:
                    process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
        counts = _read(log)
        if not any(counts[name] for name in ("passed", "failed", "skipped")):
            raise ValueError(f"{' '.join(command)} ended with code {process.returncode} and without a test.")
        return {**counts, "pytest": process.returncode}


def _read(log: Path) -> dict[str, Any]:
    if not log.exists():
        return {"passed": 0, "failed": 0, "skipped": 0, "kernels": {}}
    return dict(json.loads(log.read_text(encoding="utf-8")))


def _command(tests: Path, markers: str) -> list[str]:
    plugin = "tomfisher.benchmarks.launch_log"
    return [sys.executable, "-m", "pytest", "-m", markers, "-q", "-p", plugin, str(tests)]
