"""Scripts as several processes, the ranks of a gloo group or what torchrun starts, for a limited time."""

from __future__ import annotations

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
# What all ranks import is imported once, then the process splits into them.
FORK = """
import transformers.models.llama.modeling_llama, tomfisher.fisher.estimator, tomfisher.evaluate
for rank in range(int(os.environ["WORLD_SIZE"])):
    if not (child := os.fork()):
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.environ["RANK"] = str(rank)
        break
    print(child, flush=True)
else:
    for line in sys.stdin:  # a rank to wait for; without a limit, since whoever asks has one
        _, status = os.waitpid(int(line), 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    os._exit(0)
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
        folder: for the script and what it prints, which is also the working directory.
        body: follows `PRELUDE` and `GROUP`.
        size: number of ranks.
        environment: more variables.
        timeout: seconds for all; those that are left then are killed, and the test fails.
        leave: ranks that do not end by themselves; they are killed when the others have ended.
    """
    script = folder / "ranks.py"
    script.write_text(PRELUDE + FORK + GROUP + body + UNGROUP, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with subprocess.Popen(
        [sys.executable, str(script)],
        cwd=folder,
        env={**_environment(), **given, **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            return _ended(process, folder, size, leave, timeout)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _ended(
    process: subprocess.Popen[str], folder: Path, size: int, leave: Sequence[int], timeout: float
) -> list[Ended]:
    """Wait for each rank, those to leave last."""
    assert process.stdin is not None and process.stdout is not None
    watch = threading.Timer(timeout, os.killpg, (process.pid, signal.SIGKILL))
    watch.start()
    try:
        pids = [int(process.stdout.readline()) for _ in range(size)]
        codes = {}
        for rank in sorted(range(size), key=lambda rank: rank in leave):
            if rank in leave:
                os.kill(pids[rank], signal.SIGKILL)
            print(pids[rank], file=process.stdin, flush=True)
            codes[rank] = int(process.stdout.readline())
    finally:
        watch.cancel()
    texts = [[(folder / f"{rank}.{name}").read_text() for name in ("out", "err")] for rank in range(size)]
    return [Ended(codes[rank], *texts[rank]) for rank in range(size)]


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
    support = str(Path(__file__).resolve().parent)
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": support,
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
    }
