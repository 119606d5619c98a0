"""A pytest plugin (`-p tomfisher.benchmarks.launch_log`) that notes which Triton kernels every test launched.

The file named by TOMFISHER_LAUNCH_LOG receives `{"passed", "failed", "skipped", "kernels": {"FILE:KERNEL": {"passed",
"failed"}}}`: a kernel counts as tested only where a test really ran it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tomfisher.files import atomic_path

VARIABLE = "TOMFISHER_LAUNCH_LOG"


class LaunchLog:
    """Counts outcomes of tests, and of the tests that launched each kernel."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.kernels: dict[str, Counter[str]] = {}
        self.current: set[str] = set()

    def finished(self, outcome: str) -> None:
        """End the current test."""
        self.outcomes[outcome] += 1
        for kernel in self.current:
            self.kernels.setdefault(kernel, Counter())[outcome] += 1
        self.current = set()

    def summary(self) -> dict[str, Any]:
        """The counts as plain JSON values."""
        kernels = {k: {"passed": c["passed"], "failed": c["failed"]} for k, c in sorted(self.kernels.items())}
        return {**{what: self.outcomes[what] for what in ("passed", "failed", "skipped")}, "kernels": kernels}


_log = LaunchLog()


def pytest_configure(config: Any) -> None:
    """Watch both of Triton's ways to run a kernel: compiled and interpreted."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    for kind in (JITFunction, InterpretedFunction):
        kind.run = _watched(kind.run)


def pytest_runtest_logreport(report: Any) -> None:
    """A test ends with its call, or earlier where its setup fails or skips it."""
    if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
        _log.finished(report.outcome)
        _write()


def pytest_sessionfinish() -> None:
    """Write the counts where there was no test too."""
    _write()


def _write() -> None:
    """The counts so far, all or nothing: a kill loses no test that has ended."""
    if os.environ.get(VARIABLE):
        with atomic_path(os.environ[VARIABLE]) as temporary:
            temporary.write_text(json.dumps(_log.summary()), encoding="utf-8")


def _watched(run: Callable[..., Any]) -> Callable[..., Any]:
    def logged(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("warmup"):
            _log.current.add(f"{Path(self.fn.__code__.co_filename).name}:{self.fn.__name__}")
        return run(self, *args, **kwargs)

    return logged
