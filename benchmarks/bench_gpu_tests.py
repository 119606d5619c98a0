"""The GPU tests with a record of what passed, on which GPU, on which sources: what `--status` is computed from."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tomfisher.benchmarks.harness import record
from tomfisher.benchmarks.launch_log import VARIABLE
from tomfisher.benchmarks.verification import kernel_sources_sha256


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run `pytest -m gpu` in a process of its own and return its record; without a GPU, say what would run."""
    tests = Path(args.tests)
    if not tests.exists():
        raise FileNotFoundError(f"No tests at {tests}: run this in a source checkout, or give --tests.")
    if not torch.cuda.is_available():
        print(f"No CUDA device here. On a machine with one, this runs: {' '.join(_command(tests))}")
        return {}
    before = kernel_sources_sha256()
    found = launches(_command(tests))
    if kernel_sources_sha256() != before:
        raise ValueError("The kernel sources changed while their tests ran. Run the tests again.")
    return record("gpu_tests", {"tests": str(args.tests)}, {"gpu_tests": found}, "cuda")


def report(result: dict[str, Any]) -> str:
    """Counts, and the kernels that were launched."""
    found = result["results"]["gpu_tests"]
    counts = f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped"
    lines = [f"GPU tests on {result['machine']['gpu']}: {counts}"]
    lines += [f"  {name}: {n['passed']} passed, {n['failed']} failed" for name, n in found["kernels"].items()]
    return "\n".join(lines)


def launches(command: list[str]) -> dict[str, Any]:
    """What `launch_log` noted during a pytest command.

    Raises:
        ValueError: pytest ended without a summary.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "launches.json"
        done = subprocess.run(command, env={**os.environ, VARIABLE: str(log)}, stdout=sys.stderr)
        if not log.exists():
            raise ValueError(f"{' '.join(command)} ended with code {done.returncode} and without a summary.")
        return json.loads(log.read_text(encoding="utf-8"))


def _command(tests: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "-p",
        "tomfisher.benchmarks.launch_log",
        str(tests),
    ]
