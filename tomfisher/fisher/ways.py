"""How a Fisher diagonal of a model larger than a device or a machine can be taken, and which way is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tomfisher.fisher.footprint import Footprint, footprint
from tomfisher.fisher.sizes import Sizes
from tomfisher.fisher.way import Way, Work
from tomfisher.runtime.machine import Machine

Feature = Literal[
    "stream",
    "stream on a GPU",
    "no ahead",
    "stream in several",
    "samples",
    "shards",
    "shards on a GPU",
    "shards within a node",
    "tensor",
    "experts",
]
FEATURES: dict[Feature, str] = {
    "stream": "streaming the layers from disk",
    "stream on a GPU": "streaming the layers from disk to a GPU",
    "no ahead": "streaming without reading a layer ahead",
    "stream in several": "streaming in several processes",
    "samples": "one run of several processes, each with its samples",
    "shards": "weights sharded over processes (FSDP2)",
    "shards on a GPU": "weights sharded over GPUs (FSDP2)",
    "shards within a node": "weights sharded within each of several nodes (FSDP2)",
    "tensor": "tensor parallel models",
    "experts": "experts split over the devices of a node",
}
# The only place that says what exists: a feature goes in here in the commit that brings it.
BUILT: frozenset[Feature] = frozenset({"stream", "stream in several", "samples", "shards"})

ROOM = 0.9  # of a memory: the rest is for the driver, the allocator's fragments, the interpreter
FAST_LINK = 100e9  # bytes per second, below which tensor parallel ranks would wait for each other


@dataclass(frozen=True)
class Candidate:
    """A way, what it takes, and why it is not to be had: empty where it fits."""

    way: Way
    footprint: Footprint
    obstacles: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """Which way is taken, and what was weighed.

    Attributes:
        candidates: in the order of preference.
        best: the first that fits, built or not; None where nothing fits.
        today: the first that fits among those that the code can do; None where none does.
    """

    candidates: tuple[Candidate, ...]
    best: Candidate | None
    today: Candidate | None


def lacking(way: Way, on_gpu: bool) -> tuple[str, ...]:
    """What this way needs and the code cannot do yet, in words."""
    return tuple(FEATURES[name] for name in _needs(way, on_gpu) if name not in BUILT)


def _needs(way: Way, on_gpu: bool) -> Iterator[Feature]:
    if way.stream:
        yield "stream on a GPU" if on_gpu else "stream"
    if way.stream and not way.prefetch:
        yield "no ahead"
    if way.stream and way.ranks > 1:
        yield "stream in several"
    if way.samples > 1:
        yield "samples"
    if way.shards > 1:
        yield "shards on a GPU" if on_gpu else "shards"
    if 1 < way.shards < way.ranks:
        yield "shards within a node"
    if way.tensor > 1:
        yield "tensor"
    if way.experts > 1:
        yield "experts"


def choose_way(sizes: Sizes, machine: Machine, work: Work) -> Choice:
    """The first way, in the order of preference, that a machine has the memory for.

    One device: resident if it fits, else streamed. Several: resident with the samples split over them; with experts,
    these split within a node; on several nodes the weights sharded within each; tensor parallel within a node where
    its link is fast; else streamed, the samples split. A streamed way keeps its boundaries in memory where they fit,
    else on disk, and reads ahead where two layers fit.

    Args:
        sizes: of the model, from `sizes_of`.
        machine: what there is.
        work: samples and their lengths.
    """
    candidates = tuple(_candidate(way, sizes, machine, work) for way in preferred(sizes, machine))
    fitting = [candidate for candidate in candidates if not candidate.obstacles]
    on_gpu = machine.gpu is not None
    return Choice(
        candidates=candidates,
        best=next(iter(fitting), None),
        today=next((found for found in fitting if not lacking(found.way, on_gpu)), None),
    )


def preferred(sizes: Sizes, machine: Machine) -> list[Way]:
    """The ways that come into question, best first."""
    ranks, group = machine.ranks, machine.devices
    fast = machine.gpu is not None and machine.link >= FAST_LINK
    ways = [Way(samples=ranks)] if ranks > 1 else []
    if group > 1 and sizes.expert_layers:
        ways.append(Way(samples=ranks, experts=group))
    if group > 1 and machine.nodes > 1:
        ways.append(Way(samples=ranks, shards=group))
    if group > 1 and fast and not sizes.expert_layers:
        ways.append(Way(samples=machine.nodes, tensor=group))
    experts = group if sizes.expert_layers else 1
    shards = group if machine.nodes > 1 and experts == 1 else 1
    for split in dict.fromkeys((Way(samples=ranks, experts=experts, shards=shards), Way(samples=ranks))):
        ways += _streamed(split)
    # one process alone comes last: it leaves the other devices idle
    return list(dict.fromkeys([*ways, Way(), *_streamed(Way())] if ranks > 1 else [Way(), *ways]))


def _streamed(way: Way) -> list[Way]:
    ahead = replace(way, stream=True, prefetch=True)
    return [ahead, replace(ahead, boundary="disk"), replace(ahead, prefetch=False, boundary="disk")]


def _candidate(way: Way, sizes: Sizes, machine: Machine, work: Work) -> Candidate:
    found = footprint(sizes, way, machine, work)
    return Candidate(way, found, tuple(_obstacles(found, way, machine)))


def _obstacles(found: Footprint, way: Way, machine: Machine) -> Iterator[str]:
    together = 1 if way.ranks == 1 else machine.devices
    rows = [
        ("a device" if machine.gpu is not None else "a process", found.least, machine.memory),
        ("a node's memory", found.host.total * together, machine.host_memory),
    ]
    for name, needed, there in rows:
        if there is not None and needed > ROOM * there:
            yield f"{name} would hold {needed / 1e9:.1f} GB of {there / 1e9:.1f}"
    if machine.disk is not None and found.disk > machine.disk:
        yield f"the disk would hold {found.disk / 1e9:.1f} GB and has {machine.disk / 1e9:.1f} free"
