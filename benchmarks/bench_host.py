"""What the host does before a kernel starts: from the call of an operation to its launch, which is left out.

Every `*_kernel` of the launchers is replaced by a note of the time; all else is what runs before a launch. Operands are
zeros that no kernel reads. On a GPU the pinned tables, the stream and the device guard are part of the time; on the
CPU they are not there.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from tomfisher import ops
from tomfisher.benchmarks.harness import quantiles, record
from tomfisher.benchmarks.tables import Column, render
from tomfisher.progress import progress_bar

CALL_S, FILL_S = 40e-6, 1e-3  # what a call with a warm schedule, and the tables of 224 weights, may take
COLUMNS = (
    Column("least", "microseconds.min", ".1f"),
    Column("q20", "microseconds.q20", ".1f"),
    Column("median", "microseconds.median", ".1f"),
    Column("bound", "bound_us", ".0f"),
)
_LAUNCHERS = ("masked_fill", "scatter", "squared_gradient", "weight_sums")
_SAMPLES, _LENGTH, _WIDTH, _WEIGHTS, _EXPERTS = 100, 128, 2048, 224, 128
_SEGMENTS = (128, 1_280, 12_800)
_IN_A_ROW = 10


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Call every case `args.rounds` times, ten in a row and in turn, and return the record.

    Raises:
        ModuleNotFoundError: Triton is not installed.
    """
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with without_launches() as launched:
        cases = [*layers(device), *experts(device), *fills(device)]
        seconds: dict[str, list[float]] = {case.name: [] for case in cases}
        for turn in progress_bar(range(-_IN_A_ROW, args.rounds, _IN_A_ROW), desc="Host", unit="turn"):
            for case in cases:
                calls = [case.call(turn + n) for n in range(_IN_A_ROW)]
                for call in calls:
                    start = time.perf_counter()
                    call()
                    seconds[case.name] += [launched[-1] - start] if turn >= 0 else []
    rows = {case.name: _row(seconds[case.name], case.bound_s) for case in cases}
    shown = {"name": "from the call to the last launch, microseconds", "contenders": rows, "absent": {}}
    return record("host", {"rounds": args.rounds, "in_a_row": _IN_A_ROW}, {"cases": [shown]}, device)


def report(result: dict[str, Any]) -> str:
    """The record as a table."""
    return render(result["results"]["cases"], COLUMNS)


@contextmanager
def without_launches() -> Iterator[list[float]]:
    """Replace the kernels of the launchers by one that only notes when it is launched; yields the times."""
    modules = [importlib.import_module(f"tomfisher.kernels.{name}") for name in _LAUNCHERS]
    kept = [(m, name, k) for m in modules for name, k in vars(m).items() if name.endswith("_kernel")]
    before = os.environ.get("TRITON_INTERPRET")
    stub = _Stub()
    try:
        os.environ["TRITON_INTERPRET"] = "1"  # or the launchers refuse tensors of the CPU
        for module, name, _ in kept:
            setattr(module, name, stub)
        yield stub.times
    finally:
        for module, name, kernel in kept:
            setattr(module, name, kernel)
        os.environ.pop("TRITON_INTERPRET")
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


class _Stub:
    def __init__(self) -> None:
        self.times: list[float] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._note

    def _note(self, *arguments: object, **options: object) -> None:
        self.times.append(time.perf_counter())


class Case(NamedTuple):
    """What is timed: `call(number)` makes a call, which is timed without what making it costs."""

    name: str
    call: Callable[[int], Callable[[], object]]
    bound_s: float | None = None


def layers(device: torch.device) -> list[Case]:
    """A layer of a batch whose schedule was built for the layer before."""
    F = torch.zeros(_WIDTH, _WIDTH, device=device)  # large enough for one launch
    Y = torch.zeros(_SAMPLES, _LENGTH, _WIDTH, dtype=torch.bfloat16, device=device)
    name = f"squared_gradient_, {_SAMPLES} samples of {_LENGTH} tokens, again"
    return [Case(name, lambda number: lambda: ops.squared_gradient_(F, Y, Y, impl="triton"), CALL_S)]


def experts(device: torch.device) -> list[Case]:
    """Segments of experts, seen before or new as every layer's are, in lists and in tensors of the device."""
    return [
        Case(
            f"squared_gradient_, {segments:,} segments in {form}",
            partial(_expert_call, device, segments, form),
        )
        for segments in _SEGMENTS
        for form in ("lists, again", "lists, new", "tensors")
    ]


def _expert_call(device: torch.device, segments: int, form: str, number: int) -> Callable[[], object]:
    shift = number + _IN_A_ROW if form == "lists, new" else 0
    lengths = [(n + shift) % 17 for n in range(segments)]  # 8 in the mean, some of them empty
    offsets: Any = list(accumulate(lengths, initial=shift))  # no two lists begin alike
    targets: Any = [n * _EXPERTS // segments for n in range(segments)]
    if form == "tensors":
        offsets, targets = (torch.tensor(numbers, device=device) for numbers in (offsets, targets))
    F = torch.zeros(_EXPERTS, 32, 32, device=device)
    Y = torch.zeros(int(offsets[-1]), 32, dtype=torch.bfloat16, device=device)
    return lambda: ops.squared_gradient_(F, Y, Y, offsets=offsets, targets=targets, impl="triton")


def fills(device: torch.device) -> list[Case]:
    """The first fill of many weights: the tables of their sums, and those of the fill."""
    from tomfisher.kernels.masked_fill import masked_fill_mean_
    from tomfisher.kernels.weight_sums import weight_sums

    weights = [torch.zeros(64, 64, dtype=torch.bfloat16, device=device) for _ in range(_WEIGHTS)]
    indices = [torch.arange(4, device=device) for _ in weights]
    undo = [weight.new_empty(4) for weight in weights]
    sums = torch.full((_WEIGHTS, 2), 1.0, dtype=torch.float64, device=device)

    def first() -> None:
        weight_sums(weights)
        masked_fill_mean_(weights, indices, undo, sums)

    return [
        Case(f"sums of {_WEIGHTS} weights", lambda number: lambda: weight_sums(weights)),
        Case(f"sums and a first fill of {_WEIGHTS} weights", lambda number: first, FILL_S),
    ]


def _row(seconds: list[float], bound_s: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"microseconds": quantiles([1e6 * s for s in seconds])}
    return row if bound_s is None else {**row, "bound_us": 1e6 * bound_s}
