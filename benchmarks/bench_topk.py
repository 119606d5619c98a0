"""Exact top-k on the CPU: in memory, and from a file on disk with a cold and a warm page cache.

The floor is reading the same bytes once on all threads: a sum in memory, plain reads for a file. No peer gives
what ours does (values, indices, ties by position); `kthvalue`, `numpy.partition` and `std::nth_element` find the
threshold only, and `torch.topk` leaves ties open. On "reversed" values `kthvalue` can take time quadratic in n (seen
with torch 2.13 at κ = 0.1 and n = 10⁷: no end after four minutes).
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tomfisher.benchmarks import memory, plots, topk_data
from tomfisher.benchmarks.harness import Contender, interleave, reason, record, summary
from tomfisher.benchmarks.nth_element import kth_largest
from tomfisher.benchmarks.tables import FLOOR, SPEED, TIME, Column, render
from tomfisher.masks.fraction import count
from tomfisher.ops import TopK, topk
from tomfisher.ops.spans import read_spans

SUM, READ = "read sum", "read file"
BASELINE = "torch.topk"
STORE = Path("runs/demo-smollm2/fisher/task")
COLUMNS = (*TIME, SPEED, FLOOR, Column("GB/s", "gb_per_s"), Column("extra mem.", "peak_extra_bytes", "MiB"))
# bytes per entry that a peer takes on top of the values
_NEEDS = {BASELINE: 16, "torch.kthvalue": 12, "numpy.partition": 4, "std::nth_element": 4}
_STABLE_SORT = 20_000_000  # up to here the indices are compared with a stable sort
Way = Callable[[], Any]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every length, distribution and κ; then the file."""
    store = args.store or (str(STORE) if STORE.exists() else None)
    if args.quick:
        args.n, args.stored_n, store = [20_000], 20_000, args.store
    cases = []
    for n in args.n:
        for name in args.distributions.split(","):
            values = topk_data.values(name, n, store)
            cases += [in_memory(name, values, kappa, args) for kappa in args.kappa]
    if args.stored_n:
        for name in args.stored_distributions.split(","):
            cases += stored(name, args.stored_n, store, args)
    names = ("n", "kappa", "distributions", "stored_n", "stored_distributions", "rounds", "patience")
    settings = {name: getattr(args, name) for name in names}
    return record("topk", {**settings, "store": store or "computed: testbed-llama"}, {"cases": cases})


def report(result: dict[str, Any]) -> str:
    """The record as tables."""
    return render(result["results"]["cases"], COLUMNS)


def plot(result: dict[str, Any], path: str) -> None:
    """Time over the time of reading once."""
    cases = result["results"]["cases"]
    plots.bars(cases, path, "times_floor.median", "time / reading once", "Exact top-k on the CPU", line=1.0)


def in_memory(name: str, values: Tensor, kappa: float, args: argparse.Namespace) -> dict[str, Any]:
    """One vector and one κ, against the peers."""
    n = values.numel()
    k = at_least_one(kappa, n)
    ours: dict[str, Way] = {f"tomfisher {impl}": _ours(values, k, impl) for impl in ("cpp", "reference")}
    others = peers_of(values, k)
    for impl in ("cpp", "reference"):
        _warm_up(impl)
    absent: dict[str, str] = {}
    contenders = {SUM: Contender(lambda: float(values.sum()))}
    sizes: dict[str, int | None] = {}
    expected = _exact(values, k)
    for way, do in {**ours, **others}.items():
        try:
            _check_room(way, n)
            sizes[way] = memory.peak_extra_bytes(lambda do=do: _check(do(), expected))
        except Exception as error:
            if way == "tomfisher cpp" and not isinstance(error, NotImplementedError):
                raise
            absent[way] = reason(error)
        else:
            contenders[way] = Contender(do, peer=way in others)
    timings = interleave(
        contenders, args.rounds, desc=f"{name}, n = {n:g}, κ = {kappa:g}", patience_s=args.patience
    )
    rows = summary(timings, BASELINE, SUM)
    return _case(f"{name}, n = {n:g}, κ = {kappa:g}", n, k, rows, sizes, {**absent, **timings.absent})


def stored(name: str, n: int, store: str | None, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One file and every κ, its pages cold and warm; the file is deleted afterwards."""
    label = f"{name}, n = {n:g} in a file"
    if shutil.disk_usage(args.scratch).free < 4.4 * n:
        why = f"no room for {4 * n / 2**30:.1f} GiB in {args.scratch}"
        return [{"name": label, "contenders": {}, "absent": {"tomfisher cpp": why}}]
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="tomfisher-bench-") as folder:
        path = Path(folder) / "F.safetensors"
        topk_data.write_file(name, n, store, path)
        return [
            _stored_case(path, f"{label}, {cache}, κ = {kappa:g}", cache, at_least_one(kappa, n), args)
            for kappa in args.kappa
            for cache in ("cold", "warm")
        ]


def peers_of(values: Tensor, k: int) -> dict[str, Way]:
    """Other ways to the k largest, or to the k-th."""
    n, array = values.numel(), values.numpy()
    return {
        BASELINE: lambda: torch.topk(values, k).values,
        "torch.kthvalue": lambda: torch.kthvalue(values, n - k + 1).values,
        "numpy.partition": lambda: np.partition(array, n - k)[n - k],
        "std::nth_element": lambda: kth_largest(values, k),
    }


def at_least_one(kappa: float, n: int) -> int:
    """floor(κ·n), but 1 for short vectors: there is nothing to time in selecting none."""
    return max(1, count(kappa, n))


def _ours(values: Tensor, k: int, impl: Any) -> Way:
    return lambda: topk(values, k, impl=impl)


def _warm_up(impl: Any) -> None:
    """Import what the first call imports, before memory is measured."""
    with contextlib.suppress(NotImplementedError):
        topk(torch.rand(1000), 1, impl=impl)


def _stored_case(path: Path, label: str, cache: str, k: int, args: argparse.Namespace) -> dict[str, Any]:
    span = read_spans(path)["F"]
    threads = torch.get_num_threads()

    def ours() -> TopK:
        return topk(span, k, impl="cpp")

    prepare = partial(topk_data.drop_from_cache, path) if cache == "cold" else None
    contenders = {
        READ: Contender(partial(topk_data.read_file, path, threads), prepare),
        "tomfisher cpp": Contender(ours, prepare),
    }
    absent: dict[str, str] = {}
    if cache == "warm":
        mapped = torch.from_file(str(path), size=(span.offset + 4 * span.numel) // 4, dtype=torch.float32)
        values = mapped[span.offset // 4 :]
        if 12 * span.numel < memory.available_bytes():
            _check(ours(), _exact(values, k))
        for way, do in peers_of(values, k).items():
            try:
                _check_room(way, span.numel)
            except MemoryError as error:
                absent[way] = reason(error)
            else:
                contenders[way] = Contender(do, peer=True)
    timings = interleave(contenders, args.rounds, desc=label, patience_s=args.patience)
    rows = summary(timings, BASELINE, READ)
    sizes = {"tomfisher cpp": memory.peak_anonymous_bytes(ours)}
    return _case(label, span.numel, k, rows, sizes, {**absent, **timings.absent})


def _case(
    label: str,
    n: int,
    k: int,
    rows: dict[str, dict[str, Any]],
    sizes: dict[str, int | None],
    absent: dict[str, str],
) -> dict[str, Any]:
    for way, row in rows.items():
        row["gb_per_s"] = 4e-9 * n / row["seconds"]["median"]
        row["peak_extra_bytes"] = sizes.get(way)
    baseline = BASELINE if BASELINE in rows else None
    return {"name": label, "n": n, "k": k, "baseline": baseline, "contenders": rows, "absent": absent}


def _check_room(way: str, n: int) -> None:
    needed, there = _NEEDS.get(way, 0) * n, memory.available_bytes()
    if needed > 0.8 * there:
        raise MemoryError(f"needs {needed / 2**30:.1f} GiB, {there / 2**30:.1f} GiB are free")


def _exact(values: Tensor, k: int) -> TopK:
    """The right answer: indices by a stable sort where that is affordable, else none of them."""
    if values.numel() <= _STABLE_SORT:
        indices = torch.sort(values, descending=True, stable=True).indices[:k]
        return TopK(values[indices], indices, values[indices[-1]])
    threshold = torch.from_numpy(np.partition(values.numpy(), values.numel() - k)[-k:])
    return TopK(threshold, torch.empty(0, dtype=torch.int64), threshold.min())


def _check(result: Any, expected: TopK) -> Any:
    """Refuse to time a wrong result: a `TopK`, the values, or the threshold alone."""
    threshold = result.threshold if isinstance(result, TopK) else torch.as_tensor(result).min()
    right = float(threshold) == float(expected.threshold)
    if isinstance(result, TopK) and len(expected.indices):
        right = right and torch.equal(result.indices, expected.indices)
    elif isinstance(result, TopK):
        right = right and float(result.values.double().sum()) == float(
            expected.values.sort(descending=True).values.double().sum()
        )
    if not right:
        raise RuntimeError(f"a wrong result: threshold {float(threshold)}, not {float(expected.threshold)}")
    return result
