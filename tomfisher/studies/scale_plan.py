"""What a Fisher diagonal will take on a machine, from the model's config alone: the way, memory, bytes, time."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import torch

from tomfisher.fisher import gpu_pass
from tomfisher.fisher.footprint import Footprint
from tomfisher.fisher.sizes import Sizes
from tomfisher.fisher.way import Way, Work
from tomfisher.fisher.ways import Choice, choose_way, lacking
from tomfisher.runtime.machine import Machine

READ, COPY, PRODUCTS = "weights from disk", "weights to the device", "products"
WRITE, SPILL, SEND = "F to disk", "boundaries to disk and back", "sent to other ranks"


_TOKENS, _WIDTH = 128, 512  # of the layer that is timed on a CPU


@dataclass(frozen=True)
class ScalePlan:
    """A plan on paper.

    Attributes:
        sizes: of the model.
        machine: what there is.
        work: samples.
        choice: the ways that were weighed.
        seconds: of the best way, by part; empty where nothing fits.
        whole: seconds in all: what a streamed run reads ahead passes beside the products.
        assumed: what the seconds rest on, as sentences.
    """

    sizes: Sizes
    machine: Machine
    work: Work
    choice: Choice
    seconds: dict[str, float]
    whole: float
    assumed: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """What the best way needs and the code cannot do yet."""
        best = self.choice.best
        return () if best is None else lacking(best.way, self.machine.gpu is not None)

    def to_dict(self) -> dict[str, Any]:
        """The best way's numbers, as a record holds them beside what was measured."""
        best = self.choice.best
        if best is None:
            return {"way": None}
        return {
            "way": dataclasses.asdict(best.way),
            "footprint": dataclasses.asdict(best.footprint),
            "seconds": {**self.seconds, "whole": self.whole},
            "assumed": list(self.assumed),
        }


def plan_scale(sizes: Sizes, machine: Machine, work: Work, dtype: torch.dtype) -> ScalePlan:
    """Choose a way and add up what it takes.

    Args:
        sizes: of the model.
        machine: what there is.
        work: samples.
        dtype: of the weights, in which products are timed here where the machine has no GPU.
    """
    choice = choose_way(sizes, machine, work)
    if choice.best is None:
        return ScalePlan(sizes, machine, work, choice, {}, 0.0, ())
    way, footprint = choice.best.way, choice.best.footprint
    rate = product_rate(dtype) if machine.gpu is None else machine.gpu.bf16
    seconds = _seconds(sizes, way, footprint, machine, work, rate)
    return ScalePlan(
        sizes, machine, work, choice, seconds, _whole(way, seconds), tuple(_assumed(machine, way, rate))
    )


def product_rate(dtype: torch.dtype) -> float:
    """FLOP/s of this CPU on a linear layer and its input gradient, the fastest of three."""
    weight, tokens = torch.randn(_WIDTH, _WIDTH).to(dtype), torch.randn(_TOKENS, _WIDTH).to(dtype)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(torch.nn.functional.linear(tokens, weight), weight)
        seconds.append(time.perf_counter() - start)
    return 4 * _TOKENS * _WIDTH**2 / min(seconds)


def _seconds(
    sizes: Sizes, way: Way, footprint: Footprint, machine: Machine, work: Work, rate: float
) -> dict[str, float]:
    traffic = footprint.traffic
    ranks = min(machine.devices, way.ranks)
    products = traffic.flop / rate if machine.gpu is None else _on_gpu(sizes, way, footprint, machine, work)
    parts = {
        READ: traffic.node_read / machine.disk_speed,
        COPY: 0.0 if machine.gpu is None else traffic.read / machine.copy,
        PRODUCTS: products,
        WRITE: traffic.written / machine.disk_speed,
        SPILL: traffic.spilled / machine.disk_speed,
        SEND: traffic.link / machine.link + traffic.network * ranks / machine.network,
    }
    return {name: value for name, value in parts.items() if value}


def _on_gpu(sizes: Sizes, way: Way, footprint: Footprint, machine: Machine, work: Work) -> float:
    """Seconds of the pass on paper, with a second forward where layers are streamed."""
    assert machine.gpu is not None
    own = -(-work.samples // way.samples)
    found = gpu_pass.on_paper(machine.gpu, sizes, own, work.length, footprint.tokens_per_batch)
    again = found.parts[0].seconds / 2 if way.stream else 0.0
    return work.fishers * (found.seconds + again) / way.tensor


def _whole(way: Way, seconds: dict[str, float]) -> float:
    beside = [seconds.get(name, 0.0) for name in (READ, COPY, PRODUCTS)]
    ahead = way.stream and way.prefetch
    return (max(beside) if ahead else sum(beside)) + sum(
        seconds.get(name, 0.0) for name in (WRITE, SPILL, SEND)
    )


def _assumed(machine: Machine, way: Way, rate: float) -> list[str]:
    sentences = [f"a node's disk reads and writes {machine.disk_speed / 1e9:g} GB/s, and nothing is cached"]
    if machine.gpu is None:
        sentences.append(
            f"a process multiplies {rate / 1e9:.2g} GFLOP/s, as timed here on a layer {_WIDTH} wide"
        )
    else:
        sentences.append(f"{machine.copy / 1e9:g} GB/s from main memory to a device")
        sentences.append(f"{machine.gpu.name} by its data sheet: {gpu_pass.ASSUMPTIONS}")
    if way.ranks > 1:
        sentences.append(
            f"a device sends {machine.link / 1e9:g} GB/s within its node, a node {machine.network / 1e9:g} GB/s to "
            "others; nothing is computed meanwhile"
        )
    sentences.append(
        "every token is supervised; attention scores and the probe's backward passes are left out"
    )
    return sentences
