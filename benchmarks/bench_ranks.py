"""`fisher_diagonal` by several processes of one thread each against one such process, on the same samples.

Where N processes do what one did, it takes 1 / N of the time at best. "shares, not added" is what the machine gives:
as many processes side by side, each with its own share of the samples, without a word between them. What each of them
repeats, the rules and the probe, is a part of every row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from tomfisher.benchmarks import models, plots
from tomfisher.benchmarks.harness import Contender, interleave, record, summary
from tomfisher.benchmarks.tables import SPEED, TIME, render

ONE, APART = "1 rank", "shares, not added"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the record."""
    if args.ranks < 2:
        raise ValueError(f"--ranks must be at least 2, got {args.ranks}.")
    several = f"{args.ranks} ranks"
    before = os.getloadavg()
    with ExitStack() as stack:
        alone, together = (stack.enter_context(_started(args, size)) for size in (1, args.ranks))
        timed = {
            ONE: Contender(partial(_ask, alone, "together")),
            several: Contender(partial(_ask, together, "together")),
            APART: Contender(partial(_ask, together, "apart")),
        }
        rows = summary(interleave(timed, args.rounds, desc="Fisher passes"), ONE)
        reference = _ask(alone, "facts")
        passes = [_ask(together, "facts") for _ in range(2)]
    same = passes[0]["sha256"] == passes[1]["sha256"]
    apart = abs(passes[0]["sum"] / reference["sum"] - 1)
    case = {
        "name": f"{args.config}, {args.samples} x {args.length} tokens, one thread each",
        "baseline": ONE,
        "contenders": rows,
        "absent": {},
        "same_bits": same,
        "relative_difference_of_sums": apart,
        "cpu_count": os.cpu_count(),
        "load_before": before,
        "notes": [
            f"load average before: {before[0]:.1f} on {os.cpu_count()} processors",
            f"the bits of {args.ranks} ranks are {'the same' if same else 'NOT THE SAME'} in two passes; "
            f"the sum of all of F differs from that of 1 rank by {apart:.1e}",
        ],
    }
    settings = {name: getattr(args, name) for name in ("config", "ranks", "samples", "length", "rounds")}
    return record("ranks", settings, {"cases": [case]})


def report(result: dict[str, Any]) -> str:
    """The record as a table."""
    return render(result["results"]["cases"], (*TIME, SPEED))


def plot(result: dict[str, Any], path: str) -> None:
    """Speed against one rank."""
    plots.bars(result["results"]["cases"], path, "speed.median", "x one rank", "Fisher by several ranks")


def exit_code(result: dict[str, Any]) -> int:
    """1 where two passes of the same ranks gave different bits."""
    return int(not all(case["same_bits"] for case in result["results"]["cases"]))


@contextmanager
def _started(args: argparse.Namespace, size: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of one thread that wait to be asked for a pass."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [args.config, str(args.samples), str(args.length)]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tomfisher.benchmarks.bench_ranks", *words],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def _ask(ranks: list[subprocess.Popen[str]], how: str) -> dict[str, Any]:
    """What the first of them answers, once all have."""
    for process in ranks:
        assert process.stdin is not None
        print(how, file=process.stdin, flush=True)
    answers = []
    for rank, process in enumerate(ranks):
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"Rank {rank} of the benchmark ended with exit code {process.wait()}.")
        answers.append(json.loads(line))
    found: dict[str, Any] = answers[0]
    return found


def _serve(config: str, samples: int, length: int) -> None:
    """A rank: a pass for every line of standard input, answered by a line with what was found."""
    from tomfisher.fisher import fisher_diagonal
    from tomfisher.runtime import ranks

    torch.set_num_threads(1)
    model, chosen = models.inputs("", config, "fp32", "cpu", samples, length)
    with ranks.started("cpu") as team:
        own = [chosen[i] for i in team.share([len(sample) for sample in chosen])]
        for line in sys.stdin:
            how = line.strip()
            with ranks.alone() if how == "apart" else nullcontext():
                F = fisher_diagonal(model, own if how == "apart" else chosen, progress=False)
            print(json.dumps(_described(F) if how == "facts" else {}), flush=True)


def _described(F: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    bits = hashlib.sha256()
    for name in F:
        bits.update(F[name].numpy().tobytes())
    return {"sha256": bits.hexdigest(), "sum": sum(float(F[name].double().sum()) for name in F)}


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
