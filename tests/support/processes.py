"""Scripts as several processes, the ranks of a gloo group or what torchrun starts, for a limited time."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).resolve().parent

PRELUDE = """
import json, os, signal, sys, time
import torch
import torch.distributed as dist
import tomfisher
from tomfisher.runtime import ranks
from tiny_models import random_model

def samples_of(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(3, 53, (length,), generator=generator) for length in lengths]
    return [tomfisher.Sample(ids, ids, name=f"s{i}") for i, ids in enumerate(texts)]

def apart(a, b):  # the largest difference of a tensor, relative, in the norm
    a, b = ({name: F[name].double() for name in F} for F in (a, b))
    return max(float((a[name] - b[name]).norm() / b[name].norm().clamp_min(1e-30)) for name in b)

def told(**facts):
    print(json.dumps(facts), flush=True)

def refusal(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""
GROUP = """
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
"""
# A group that is still there when its process ends can abort it (PyTorch issue 190489).
UNGROUP = """
if dist.is_initialized():
    dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit code (minus the signal that killed it), and what it printed."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> dict[str, Any]:
        """What the script `told`, of all its lines together; it has to have ended well."""
        assert self.code == 0, self.err
        return {key: value for line in self.out.splitlines() for key, value in json.loads(line).items()}


def run_ranks(
    folder: Path,
    body: str,
    size: int,
    environment: Mapping[str, str] | None = None,
    timeout: float = 240,
    leave: Sequence[int] = (),
) -> list[Ended]:
    """Run a script on every rank of a group whose store rank 0 keeps, as a launcher without a watch over them does.

    Args:
        folder: as in `run_forks`.
        body: follows `PRELUDE` and `GROUP`.
        size: number of ranks.
        environment: more variables.
        timeout: as in `run_forks`.
        leave: as in `run_forks`.
    """
    environments = [{**each, **(environment or {})} for each in launched(size)]
    return run_forks(folder, PRELUDE + GROUP + body + UNGROUP, environments, timeout, leave)


def launched(size: int) -> list[dict[str, str]]:
    """The variables that a launcher gives to each of so many ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**given, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def run_forks(
    folder: Path,
    script: str,
    environments: Sequence[Mapping[str, str]] = ({},),
    timeout: float = 240,
    leave: Sequence[int] = (),
) -> list[Ended]:
    """Run a script in processes that begin with tomfisher and transformers imported, which takes seconds otherwise.

    Args:
        folder: for the script and what it prints, which is also the working directory.
        script: Python.
        environments: more variables, of each process that is to run it.
        timeout: seconds for all; those that are left then are killed, and `TimeoutError` says so.
        leave: processes that do not end by themselves; they are killed when the others have ended.
    """
    file = folder / "script.py"
    file.write_text(script, encoding="utf-8")
    server, size = _server(), len(environments)
    request = {
        "script": str(file),
        "folder": str(folder),
        "environments": [{**_environment(), **more} for more in environments],
    }
    try:
        leader = _answer(server, json.dumps(request))
        try:
            codes = _ended(server, leader, size, leave, timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):  # after the timeout
                os.killpg(leader, signal.SIGKILL)
        assert server.stdout is not None and server.stdout.readline() == "ended\n"
    except BaseException:
        server.kill()
        _server.cache_clear()
        raise
    texts = [[(folder / f"{rank}.{name}").read_text() for name in ("out", "err")] for rank in range(size)]
    return [Ended(codes[rank], *texts[rank]) for rank in range(size)]


def _ended(
    server: subprocess.Popen[str], leader: int, size: int, leave: Sequence[int], timeout: float
) -> dict[int, int]:
    """Wait for each process, those to leave last; their exit codes. TimeoutError: they took longer."""
    late = threading.Event()

    def end() -> None:
        late.set()
        os.killpg(leader, signal.SIGKILL)

    watch = threading.Timer(timeout, end)
    watch.start()
    try:
        pids = [_answer(server) for _ in range(size)]
        codes = {}
        for rank in sorted(range(size), key=lambda rank: rank in leave):
            if rank in leave:
                os.kill(pids[rank], signal.SIGKILL)
            codes[rank] = _answer(server, str(pids[rank]))
    except ChildProcessError as error:
        if late.is_set():
            raise TimeoutError(
                f"The script was still running after {timeout:g} s, and was killed."
            ) from error
        raise
    finally:
        watch.cancel()
    return codes


def _answer(server: subprocess.Popen[str], line: str | None = None) -> int:
    """The next number that the server says, after a line to it."""
    assert server.stdin is not None and server.stdout is not None
    if line is not None:
        print(line, file=server.stdin, flush=True)
    said = server.stdout.readline()
    if said in ("", "ended\n"):
        raise ChildProcessError("The processes of the script, or their server, ended before they said how.")
    return int(said)


@functools.cache
def _server() -> subprocess.Popen[str]:
    """`fork_server.py`, which ends with this process."""
    server = subprocess.Popen(
        [sys.executable, str(SUPPORT / "fork_server.py")],
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(_close, server)
    return server


def _close(server: subprocess.Popen[str]) -> None:
    with server:
        pass


def torchrun(folder: Path, size: int, *arguments: str, timeout: float = 300) -> Ended:
    """`torchrun --standalone --nproc_per_node size ...` in a folder.

    Args:
        folder: the working directory.
        size: number of ranks.
        arguments: a script, or `-m tomfisher` and its words.
        timeout: seconds, after which it is killed with its ranks, and the test fails.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(size)]
    with subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return Ended(process.returncode, out, err)


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "RANK", "WORLD", "MASTER"))}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(SUPPORT),
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
    }
