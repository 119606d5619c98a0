"""Running the census: two processes that take one architecture at a time, and are replaced where they do not return."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from census import configs

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = 2
SECONDS = 120.0  # for one architecture, which takes about one on an idle machine


class Worker:
    """A process that reads the name of an architecture a line and writes its row a line.

    Args:
        arguments: of `census.worker`: none, or "streaming".
    """

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self.process: subprocess.Popen[str] | None = None

    def row(self, model_type: str, seconds: float = SECONDS) -> dict[str, object]:
        """The row of one architecture; where the process dies or takes too long, a row that says so."""
        process = self.process if self.process is not None else self._start()
        watch = threading.Timer(seconds, process.kill)
        watch.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{model_type}\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            late = not watch.is_alive()
            watch.cancel()
        if line:
            return json.loads(line)
        self.close()
        reason = f"no answer in {seconds:.0f} seconds" if late else "its process died"
        name = configs.class_name(model_type)
        return {"type": model_type, "class": name, "built": True, "failed": reason}

    def _start(self) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "census.worker", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        return self.process

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def rows(
    model_types: Sequence[str], *arguments: str, processes: int = PROCESSES
) -> Iterator[dict[str, object]]:
    """The rows of some architectures, in their order, from processes of one thread each."""
    local = threading.local()
    workers: list[Worker] = []

    def run(model_type: str) -> dict[str, object]:
        if not hasattr(local, "worker"):
            local.worker = Worker(*arguments)
            workers.append(local.worker)
        return local.worker.row(model_type)

    with ThreadPoolExecutor(processes) as pool:
        try:
            yield from pool.map(run, model_types)
        finally:
            for worker in workers:
                worker.close()
