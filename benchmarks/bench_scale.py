"""The streamed Fisher of models of known shapes: time, memory, bytes read and written, beside the resident one.

Weights are random and written by the benchmark, one layer at a time; they are deleted afterwards. Every pass has a
process of its own. Streamed and resident passes take turns, so that a busy machine is busy for both. With --kills, a
streamed run is killed and begun again instead, and the bytes of its store are compared.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tomfisher.benchmarks import memory, plots, scale_kills
from tomfisher.benchmarks.bench_growth import exponent
from tomfisher.benchmarks.harness import quantiles, record
from tomfisher.benchmarks.scale_model import Shape, is_checkpoint_of, write_checkpoint
from tomfisher.benchmarks.scale_pass import RESIDENT, STREAMED, Pass, in_fresh_process
from tomfisher.benchmarks.tables import shown
from tomfisher.fisher import FisherDiagonal
from tomfisher.progress import note

BOUNDS = {"read_over_file": 2.05, "F_written_over_F": 1.01, "streamed_over_resident": 1.35}
_RESIDENT_SHARE = 0.8  # of the available memory, for weights, F and what a pass needs besides
_SPARE = 256 << 20  # bytes of disk that stay free


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every shape with every number of samples, or kill; return the record."""
    shapes = [Shape.of(name, args.dtype, args.layers) for name in args.shape.split(",")]
    samples = sorted(args.samples)
    scratch = Path(args.scratch)
    if not scratch.is_dir():
        raise FileNotFoundError(
            f"There is no folder {args.scratch!r}. Give --scratch a folder on a large disk."
        )
    settings = {
        key: getattr(args, key)
        for key in ("shape", "layers", "dtype", "samples", "tokens", "rounds", "boundary", "kills", "model")
    }
    if args.model:
        with _folder(scratch) as folder:
            cases = [_case(args, args.model, None, n, folder) for n in samples]
        return record("scale", settings, {"cases": cases, "growth": []})
    for shape in shapes:  # before any work
        _check_disk(args, shape, max(samples), scratch)
    cases = []
    for shape in shapes:
        with _folder(scratch) as folder, _weights(args, shape, scratch, folder) as weights:
            if args.kills:
                cases.append(_killed(args, shape, str(weights), samples[0], folder))
            else:
                cases += [_case(args, str(weights), shape, n, folder) for n in samples]
    return record("scale", settings, {"cases": cases, "growth": [] if args.kills else _growth(cases)})


def report(result: dict[str, Any]) -> str:
    """A block per case with every figure and its bound, then the fitted exponents."""
    blocks = []
    for case in result["results"]["cases"]:
        if "kills" in case:
            blocks.append(scale_kills.report(case))
            continue
        lines = [case["name"]]
        for way in (STREAMED, RESIDENT):
            if way in case["ways"]:
                row = case["ways"][way]
                lines.append(
                    f"  {way:9}  {shown(row['seconds']['median'], 's'):>10}  peak {shown(row['peak_bytes'], 'GiB')} "
                    "above the interpreter"
                )
            elif way in case["absent"]:
                lines.append(f"  {way:9}  not run: {case['absent'][way]}")
        lines += [f"  {_spelled(name)}: {value:.4g}{_bound(name)}" for name, value in case["ratios"].items()]
        streamed = case["ways"][STREAMED]
        lines.append(
            f"  hidden states on disk {shown(streamed['hidden_bytes'], 'GiB')} "
            f"(said before: {shown(case['said_hidden_bytes'], 'GiB')}), "
            f"journal {shown(streamed['written']['journal'], 'MiB')} in all"
            if case["said_hidden_bytes"] is not None
            else f"  hidden states on disk {shown(streamed['hidden_bytes'], 'GiB')}"
        )
        if "same_bits" in case:
            lines.append(f"  F of both: {'the same bits' if case['same_bits'] else 'DIFFERENT BITS'}")
        blocks.append("\n".join(lines))
    for curve in result["results"]["growth"]:
        blocks.append(
            f"{curve['way']} over {curve['x']}: time like x^{curve['exponent']:.2f}, peak memory like "
            f"x^{curve['memory_exponent']:.2f}"
        )
    return "\n\n".join(blocks)


def plot(result: dict[str, Any], path: str | Path) -> None:
    """Time and peak memory over parameters and over samples, a curve a way."""
    panels = []
    for y in ("seconds", "peak GiB"):
        for x in dict.fromkeys(curve["x"] for curve in result["results"]["growth"]):
            curves = [curve for curve in result["results"]["growth"] if curve["x"] == x]
            series = {curve["way"]: [(p["x"], p[y]) for p in curve["points"]] for curve in curves}
            panels.append({"title": "", "x": x, "y": y, "series": series})
    if not panels:  # one point, or kills
        cases = [case for case in result["results"]["cases"] if "ways" in case]
        rows = [
            {
                "name": case["name"],
                "contenders": {way: {"peak": row["peak_bytes"]} for way, row in case["ways"].items()},
            }
            for case in cases
        ]
        plots.bars(rows, path, "peak", "bytes above the interpreter", "Peak memory")
        return
    plots.curves(panels, path, "Fisher diagonal, streamed and resident")


def exit_code(result: dict[str, Any]) -> int:
    """1 where bits or bytes differ."""
    cases = result["results"]["cases"]
    return int(not all(case.get("same_bits", True) and case.get("same_bytes", True) for case in cases))


def _case(
    args: argparse.Namespace, model: str, shape: Shape | None, samples: int, folder: Path
) -> dict[str, Any]:
    """Passes over one checkpoint, taking turns."""
    absent = {} if args.resident else {RESIDENT: "left out"}
    if shape is not None and args.resident and (why := _too_large(shape)):
        absent[RESIDENT] = why
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in (STREAMED, RESIDENT) if way not in absent}
    same = []
    for turn in range(args.rounds):
        for way in found:
            note(
                f"{shape.name if shape else model}, {samples} samples: {way}, round {turn + 1} of {args.rounds}"
            )
            store = str(folder / way)
            found[way].append(in_fresh_process(Pass(way, model, store, samples, args.tokens, args.boundary)))
        if RESIDENT in found:
            same.append(_same(folder / STREAMED, folder / RESIDENT))
        for way in found:
            shutil.rmtree(folder / way)
    sizes = shape.facts() if shape else {"model": model}
    F = found[STREAMED][0]["F_bytes"]
    case: dict[str, Any] = {
        "name": f"{shape.name if shape else model}"
        + (f", first {shape.layers} of {shape.whole} layers" if shape and shape.is_slice else "")
        + f", {samples} x {args.tokens} tokens",
        **sizes,
        "samples": samples,
        "tokens": args.tokens,
        "said_hidden_bytes": shape.hidden_bytes(samples, args.tokens) if shape else None,
        "ways": {way: _row(passes) for way, passes in found.items()},
        "absent": absent,
        "ratios": _ratios(found, F),
    }
    return case | ({"same_bits": all(same)} if same else {})


def _row(passes: list[dict[str, Any]]) -> dict[str, Any]:
    """The largest sizes and the quantiles of the times."""
    largest = max(passes, key=lambda one: one["peak_bytes"])
    return largest | {
        "seconds": quantiles([one["seconds"] for one in passes]),
        "load_seconds": quantiles([one["load_seconds"] for one in passes]),
    }


def _ratios(found: dict[str, list[dict[str, Any]]], F_bytes: int) -> dict[str, float]:
    streamed = found[STREAMED][0]
    read, written = streamed["read"], streamed["written"]
    ratios = {
        "read_over_file": read["weights"] / read["files"],
        "F_written_over_F": written["F"] / F_bytes,
        "all_written_over_F": sum(written.values()) / F_bytes,
    }
    if RESIDENT in found:
        pairs = list(zip(found[STREAMED], found[RESIDENT], strict=True))
        ratios |= {
            "streamed_over_resident": quantiles([a["seconds"] / b["seconds"] for a, b in pairs])["median"],
            "streamed_over_resident_loaded": quantiles(
                [a["seconds"] / (b["seconds"] - b["load_seconds"]) for a, b in pairs]
            )["median"],
            "resident_peak_over_streamed": found[RESIDENT][0]["peak_bytes"] / streamed["peak_bytes"],
        }
    return ratios


def _spelled(name: str) -> str:
    return {
        "read_over_file": "bytes of weights read over size of the files",
        "F_written_over_F": "bytes of F written over size of F",
        "all_written_over_F": "the same with headers, records and journals",
        "streamed_over_resident": "time, streamed over resident with its load",
        "streamed_over_resident_loaded": "time, streamed over resident without its load",
        "resident_peak_over_streamed": "peak memory, resident over streamed",
    }[name]


def _bound(name: str) -> str:
    return f" (bound {BOUNDS[name]})" if name in BOUNDS else ""


def _killed(
    args: argparse.Namespace, shape: Shape, weights: str, samples: int, folder: Path
) -> dict[str, Any]:
    wanted = Pass(STREAMED, weights, str(folder / "store"), samples, args.tokens, args.boundary)
    found = scale_kills.in_fresh_process(wanted, args.kills)
    return {"name": f"{shape.name}, {args.kills} kills", **shape.facts(), "samples": samples, **found}


def _same(ours: Path, other: Path) -> bool:
    """Whether two stores hold the same bits."""
    a, b = FisherDiagonal.load(ours, verify=False), FisherDiagonal.load(other, verify=False)
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def _growth(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Curves over the parameters at the most samples, and over the samples of the largest shape."""
    most, largest = max(case["samples"] for case in cases), max(case["parameters"] for case in cases)
    axes = {
        "parameters": [case for case in cases if case["samples"] == most],
        "samples": [case for case in cases if case["parameters"] == largest],
    }
    curves = []
    for x, along in axes.items():
        for way in (STREAMED, RESIDENT):
            points = [
                {"x": case[x], "seconds": row["seconds"]["median"], "peak GiB": row["peak_bytes"] / 2**30}
                for case in along
                if (row := case["ways"].get(way))
            ]
            if len({p["x"] for p in points}) > 1:
                curves.append(
                    {
                        "x": x,
                        "way": way,
                        "points": points,
                        "exponent": exponent([(p["x"], p["seconds"]) for p in points]),
                        "memory_exponent": exponent([(p["x"], p["peak GiB"]) for p in points]),
                    }
                )
    return curves


def _too_large(shape: Shape) -> str | None:
    """Why the resident pass is not run."""
    needed, free = shape.weight_bytes + shape.fisher_bytes, memory.available_bytes()
    if needed <= _RESIDENT_SHARE * free:
        return None
    return f"weights and F take {needed / 1e9:.1f} GB, of {free / 1e9:.1f} GB that are free"


def _check_disk(args: argparse.Namespace, shape: Shape, samples: int, scratch: Path) -> None:
    """Say how much disk a shape takes, and refuse where there is less."""
    hidden = 0 if args.boundary == "ram" else shape.hidden_bytes(samples, args.tokens)
    weights = 0 if is_checkpoint_of(shape, _kept(shape, scratch)) else shape.weight_bytes
    both = args.kills or (args.resident and not _too_large(shape))
    stores = shape.fisher_bytes * (2 if both else 1)
    needed, free = weights + stores + hidden + _SPARE, shutil.disk_usage(scratch).free
    said = (
        f"{shape.name} ({shape.layers} of {shape.whole} layers) takes {needed / 1e9:.1f} GB of disk in {scratch}: "
        f"weights {weights / 1e9:.1f}, Fisher stores {stores / 1e9:.1f}, hidden states {hidden / 1e9:.1f}"
    )
    if needed > free:
        raise OSError(
            f"{said}; {free / 1e9:.1f} GB are free. Take fewer --layers or --samples, or another --scratch."
        )
    note(f"{said}; {free / 1e9:.1f} GB are free")


def _kept(shape: Shape, scratch: Path) -> Path:
    return scratch / f"tomfisher-{shape.name}-{shape.layers}-{shape.dtype}"


@contextmanager
def _weights(args: argparse.Namespace, shape: Shape, scratch: Path, folder: Path) -> Iterator[Path]:
    """The checkpoint: a new one, or with --keep the one that the last run left."""
    kept = _kept(shape, scratch)
    if is_checkpoint_of(shape, kept):
        note(f"weights of an earlier run: {kept}")
        yield kept
        return
    place = kept if args.keep else folder / "weights"
    note(f"writing random weights of {shape.name}: {shape.weight_bytes / 1e9:.1f} GB")
    write_checkpoint(shape, place)
    yield place


@contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    """A folder for weights and stores that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix="tomfisher-scale-") as folder:
        yield Path(folder)
