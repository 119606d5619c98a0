"""A plan on paper as text: the way, memory by part, bytes, operations, time."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from tomfisher.progress import duration

if TYPE_CHECKING:
    from tomfisher.fisher.footprint import Footprint
    from tomfisher.fisher.ways import Candidate
    from tomfisher.runtime.machine import Machine
    from tomfisher.studies.scale_plan import ScalePlan

WIDTH, LABEL = 100, 12
PARTS = {
    "weights": "weights in use",
    "ahead": "the next layer's weights",
    "fisher": "F, float32",
    "boundaries": "boundaries",
    "activations": "activations of a batch",
    "logits": "logits of a batch",
    "gradient": "one gradient (probe)",
    "reduction": "one tensor of another's F",
    "workspace": "workspace",
    "fragments": "the allocator's fragments",
}


def format_scale(plan: ScalePlan) -> str:
    """The plan as lines of at most 100 columns."""
    return "\n".join(_lines(plan))


def _lines(plan: ScalePlan) -> Iterator[str]:
    work, sizes, best = plan.work, plan.sizes, plan.choice.best
    yield from _entry(
        "model",
        f"{sizes.parameters:,} parameters, {sizes.model_bytes / 1e9:,.1f} GB; F of {sizes.weights:,} of them, "
        f"{sizes.fisher_bytes / 1e9:,.1f} GB",
    )
    fishers = "task and control, each " if work.fishers == 2 else ""
    yield from _entry("samples", f"{fishers}{work.samples} of {work.length} tokens")
    yield from _entry("machine", _machine(plan.machine))
    yield from _entry("way", "none: no way fits" if best is None else str(best.way))
    for feature in plan.missing:
        yield from _entry("", f"not supported yet: {feature}")
    if best is None or plan.missing:
        yield from _entry("today", _today(plan.choice.today))
    for candidate in plan.choice.candidates:
        if candidate is best:
            break
        yield from _entry("not taken", f"{candidate.way}: {'; '.join(candidate.obstacles)}")
    if best is not None:
        yield from _costs(plan, best.footprint)


def _today(candidate: Candidate | None) -> str:
    if candidate is None:
        return "nothing that the code can do fits on this machine"
    return f"{candidate.way}, which the code can do"


def _machine(machine: Machine) -> str:
    nodes = f"{machine.nodes} nodes of " if machine.nodes > 1 else ""
    kind = "process" if machine.gpu is None else "GPU"
    devices = f"{machine.devices} {kind}" + (
        ("es" if kind == "process" else "s") if machine.devices > 1 else ""
    )
    name = "" if machine.gpu is None else f" ({machine.gpu.name})"
    host = (
        "" if machine.host_memory is None else f", {machine.host_memory / 1e9:,.1f} GB of main memory a node"
    )
    disk = "" if machine.disk is None else f", {machine.disk / 1e9:,.1f} GB of disk free"
    each = " each" if machine.devices > 1 else ""
    return f"{nodes}{devices} with {machine.memory / 1e9:,.1f} GB{each}{name}{host}{disk}"


def _costs(plan: ScalePlan, footprint: Footprint) -> Iterator[str]:
    traffic, on_gpu = footprint.traffic, plan.machine.gpu is not None
    heads = ("GPU", "main memory") if on_gpu else ("main memory",)
    yield from _entry("memory", f"GB of a rank{'':15}" + "".join(f"{head:>13}" for head in heads))
    columns = [asdict(footprint.device), asdict(footprint.host)][: len(heads)]
    for key, name in PARTS.items():
        if any(column[key] for column in columns):
            yield _row(name, [column[key] for column in columns])
    yield _row("in all, above the interpreter", [footprint.device.total, footprint.host.total][: len(heads)])
    yield from _entry(
        "", f"fullest at: {footprint.stage}; batches of at most {footprint.tokens_per_batch:,} tokens"
    )
    moved = [f"reads {_gb(traffic.read)} of weights a rank, {_gb(traffic.node_read)} a node"]
    moved += [f"writes {_gb(traffic.written)} of F a node"]
    moved += [f"moves {_gb(traffic.spilled)} of boundaries"] if traffic.spilled else []
    moved += [f"sends {_gb(traffic.link)} a rank within its node"] if traffic.link else []
    moved += [f"{_gb(traffic.network)} a rank to other nodes"] if traffic.network else []
    yield from _entry("bytes", ", ".join(moved))
    yield from _entry("products", f"{traffic.flop / 1e12:,.1f} TFLOP a rank")
    yield from _entry("disk", f"{_gb(footprint.disk)} for F" + (" and boundaries" if traffic.spilled else ""))
    yield from _entry("time", f"about {duration(plan.whole)}, on paper")
    for name, seconds in plan.seconds.items():
        yield f"{'':{LABEL}}  {name:30}{seconds:13,.1f} s"
    yield from _entry("assumed", "; ".join(plan.assumed))


def _row(name: str, values: list[float]) -> str:
    return f"{'':{LABEL}}  {name:30}" + "".join(f"{value / 1e9:13,.2f}" for value in values)


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def _entry(label: str, text: str) -> list[str]:
    indent = " " * LABEL
    return (
        textwrap.wrap(
            text,
            WIDTH,
            initial_indent=f"{label:{LABEL}}",
            subsequent_indent=f"{indent}  ",
            break_on_hyphens=False,
        )
        if len(text) > WIDTH - LABEL
        else [f"{label:{LABEL}}{text}".rstrip()]
    )
