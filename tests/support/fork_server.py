"""A process that has imported what takes seconds, and forks for each script that it is asked to run.

A request is a line of JSON on standard input: `script`, `folder`, and `environments` of the processes that are to run
the script. It is answered with the number of the leader of a new process group and the numbers of these processes.
The leader then waits for each that it is told the number of, and answers how it ended. When it is killed with its
group, the answer is "ended", and the next request may come.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# ruff: noqa: F401
import transformers.models.llama.modeling_llama

import tiny_models
import tomfisher.evaluate
import tomfisher.fisher.estimator


def requested() -> str:
    """Answer requests; returns, with the script, in the processes that are to run one."""
    for line in sys.stdin:
        leader = os.fork()
        if not leader:
            return _led(json.loads(line))
        os.waitpid(leader, 0)
        print("ended", flush=True)
    os._exit(0)


def _led(request: dict[str, Any]) -> str:
    os.setsid()
    print(os.getpid(), flush=True)
    for number, environment in enumerate(request["environments"]):
        child = os.fork()
        if not child:
            _part(number, request["folder"], environment)
            return request["script"]
        print(child, flush=True)
    for line in sys.stdin:  # without a limit in time, since whoever asks has one
        _, status = os.waitpid(int(line), 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    os._exit(0)


def _part(number: int, folder: str, environment: dict[str, str]) -> None:
    """Leave the server's streams, folder and environment."""
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.clear()
    os.environ.update(environment)


if __name__ == "__main__":
    SCRIPT = requested()
    sys.argv = [SCRIPT]
    exec(compile(Path(SCRIPT).read_text(encoding="utf-8"), SCRIPT, "exec"), {"__name__": "__main__"})
