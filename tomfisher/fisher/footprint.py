"""What a way of taking a Fisher diagonal needs, on paper: memory by part, bytes moved, operations.

Weights, sums and boundaries follow from shapes. Activations are an estimate: two values per output of a linear map, and
in 16-bit models two float32 values of the hidden size besides, per token and layer, as measured on small Llamas on the
CPU (tests/fisher/test_footprint.py compares with a process's peak).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch

from tomfisher.fisher.nll import CHUNK, GPU_CHUNK
from tomfisher.fisher.sizes import LayerSizes, Sizes, sizes_of
from tomfisher.fisher.way import Way, Work
from tomfisher.runtime.machine import Machine
from tomfisher.runtime.memory import CPU_TOKENS, SHARE, tokens_that_fit

F32 = 4
WHOLE, OUTSIDE, LAYER = "all layers", "embeddings and head", "backward of a layer"
VALUES_PER_OUTPUT, HIDDEN_COPIES = 2, 2  # kept per token: in the weights' dtype; in float32, of 16-bit models
LOGIT_COPIES = 2  # logits and their gradient
WORKSPACE = 4_000_000  # of the kernels and of Python's objects, as measured
FRAGMENTS = 0.25  # of what a batch takes: what glibc's allocator keeps besides, as measured


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at its peak, in one place, by part.

    Attributes:
        weights: in use.
        ahead: weights of the layer that is read, or gathered, beside the one in use.
        fisher: float32 sums.
        boundaries: inputs of the layers of a streamed run, and the gradient that enters the next.
        activations: of one batch, kept for the backward pass.
        logits: of one batch, at its supervised positions, their gradient, and the piece of them that is in float32.
        gradient: one weight gradient, which the probe compares with.
        reduction: one tensor of another rank's sums.
        workspace: what kernels and libraries take besides.
        fragments: what the allocator keeps of freed activations and logits.
    """

    weights: float = 0
    ahead: float = 0
    fisher: float = 0
    boundaries: float = 0
    activations: float = 0
    logits: float = 0
    gradient: float = 0
    reduction: float = 0
    workspace: float = 0
    fragments: float = 0

    @property
    def total(self) -> float:
        """All parts."""
        return float(sum(astuple(self)))

    @property
    def held(self) -> float:
        """Weights and sums: what does not depend on the samples."""
        return self.weights + self.ahead + self.fisher


@dataclass(frozen=True)
class Traffic:
    """Bytes that move, and operations. Of one rank where nothing else is said.

    Attributes:
        read: weights.
        node_read: weights that a node's disk gives: its ranks read in step, so that one reads and the others find it.
        written: F, by the busiest node.
        spilled: boundaries written and read again, by a node.
        link: sent to ranks of the same node.
        network: sent to other nodes, by a rank.
        flop: products.
    """

    read: float
    node_read: float
    written: float
    spilled: float
    link: float
    network: float
    flop: float


@dataclass(frozen=True)
class Footprint:
    """What a way needs.

    Attributes:
        stages: memory where the products are, stage by stage.
        host: main memory of a rank besides; empty on CPUs, where it is the same memory.
        least: bytes of the device if a batch is one sample.
        tokens_per_batch: budget of a batch.
        traffic: what moves.
        disk: bytes that all nodes together write: F, and boundaries that are spilled.
    """

    stages: dict[str, Memory]
    host: Memory
    least: float
    tokens_per_batch: int
    traffic: Traffic
    disk: float

    @property
    def stage(self) -> str:
        """The one that takes most."""
        return max(self.stages, key=lambda name: self.stages[name].total)

    @property
    def device(self) -> Memory:
        """Where the products are, at that stage."""
        return self.stages[self.stage]


def footprint(sizes: Sizes, way: Way, machine: Machine, work: Work) -> Footprint:
    """What a way takes of each rank.

    Args:
        sizes: of the model.
        way: how.
        machine: whose memory tells how large a batch may be, and whether host and device are one.
        work: samples.
    """
    budget = _budget(sizes, way, machine, work)
    kept = _boundaries(sizes, way, work) if way.stream else 0
    spilled = kept * way.samples if way.boundary == "disk" else 0
    return Footprint(
        stages=dict(_stages(sizes, way, machine, work, budget)),
        host=_host(sizes, way, work) if machine.gpu is not None else Memory(),
        least=max(m.total for _, m in _stages(sizes, way, machine, work, work.length)),
        tokens_per_batch=budget,
        traffic=_traffic(sizes, way, machine, work),
        disk=sizes.fisher_bytes * work.fishers + spilled,
    )


def predicted_peak(
    config: Any,
    samples: int,
    length: int,
    way: Way | None = None,
    params: str = "decoder-linear",
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes that a run on the CPU takes at its peak above the interpreter with its libraries.

    Args:
        config: of a causal language model, as transformers makes it.
        samples: how many.
        length: tokens of each.
        way: resident, unless another is given.
        params: as `fisher_diagonal` takes them.
        dtype: of the weights.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        sizes = sizes_of(AutoModelForCausalLM.from_config(config), params, dtype)
    found = footprint(sizes, way or Way(), Machine(memory=1 << 62), Work(samples, length))
    return int(found.device.total)


def _budget(sizes: Sizes, way: Way, machine: Machine, work: Work) -> int:
    """Tokens of a batch: on a GPU what fits beside weights and sums, and never more than there are."""
    most = max(work.length, work.tokens(way.samples) // work.fishers)
    if isinstance(work.tokens_per_batch, int):
        return min(most, max(work.length, work.tokens_per_batch))
    if machine.gpu is None:
        return min(most, max(work.length, CPU_TOKENS))
    empty = max(memory.total for _, memory in _stages(sizes, way, machine, work, 0))
    full = max(memory.total for _, memory in _stages(sizes, way, machine, work, 1024))
    return min(most, tokens_that_fit(int(SHARE * (machine.memory - empty)), int((full - empty) / 1024)))


def _stages(sizes: Sizes, way: Way, machine: Machine, work: Work, batch: int) -> Iterator[tuple[str, Memory]]:
    """Peak of each stage where the products are."""
    for name, memory in _in_use(sizes, way, machine, work, batch):
        kept = FRAGMENTS * (memory.activations + memory.logits)
        yield name, replace(memory, workspace=WORKSPACE, fragments=kept)


def _in_use(sizes: Sizes, way: Way, machine: Machine, work: Work, batch: int) -> Iterator[tuple[str, Memory]]:
    on_gpu = machine.gpu is not None
    if not way.stream:
        yield WHOLE, _resident(sizes, way, batch, on_gpu)
        return
    here = 2 * _hidden(sizes, batch) if on_gpu or way.boundary == "disk" else _boundaries(sizes, way, work)
    ahead = max(_layer_weights(layer, sizes, way) for layer in sizes.layers) if way.prefetch else 0
    common = Memory(ahead=ahead, boundaries=here)
    outside = replace(common, weights=sizes.itemsize * sizes.outside, logits=_logits(sizes, batch, on_gpu))
    yield OUTSIDE, outside
    layer = sizes.widest
    yield (
        LAYER,
        replace(
            common,
            weights=_layer_weights(layer, sizes, way),
            fisher=_layer_fisher(layer, way),
            activations=_activations(layer, sizes, way, batch),
            gradient=sizes.itemsize * layer.largest / way.experts,
            reduction=F32 * layer.largest / way.experts if way.samples > 1 else 0,
        ),
    )


def _resident(sizes: Sizes, way: Way, batch: int, on_gpu: bool) -> Memory:
    layer = sizes.widest
    largest = max(item.largest for item in sizes.layers) / (way.tensor * way.experts)
    experts = 1 - 1 / way.experts
    split = way.tensor * way.shards
    weights = sizes.itemsize * (sizes.parameters - experts * sum(item.experts for item in sizes.layers))
    fisher = F32 * (sizes.weights - experts * sum(item.selected_experts for item in sizes.layers))
    gathered = way.shards > 1
    return Memory(
        weights=weights / split,
        ahead=2 * _layer_weights(layer, sizes, way) if gathered else 0,
        fisher=fisher / split + (_layer_fisher(layer, way) if gathered else 0),
        activations=sum(_activations(item, sizes, way, batch) for item in sizes.layers),
        logits=_logits(sizes, batch, on_gpu) / way.tensor,
        gradient=sizes.itemsize * largest,
        reduction=F32 * largest if way.samples > 1 else 0,
    )


def _host(sizes: Sizes, way: Way, work: Work) -> Memory:
    """What passes through main memory on its way to a GPU and back."""
    if not way.stream:
        # load_model reads the model into main memory first; sharded ones are read by shard
        return Memory(weights=sizes.model_bytes / (way.tensor * way.shards), workspace=WORKSPACE)
    layer = sizes.widest
    kept = _boundaries(sizes, way, work) if way.boundary == "ram" else 0
    weights = _layer_weights(layer, sizes, way) / way.shards
    ahead = weights if way.prefetch else 0
    backward = Memory(weights, ahead, _layer_fisher(layer, way) / way.shards, kept, workspace=WORKSPACE)
    outside = Memory(sizes.itemsize * sizes.outside, ahead, 0, kept, workspace=WORKSPACE)
    return max(backward, outside, key=lambda memory: memory.total)


def _layer_weights(layer: LayerSizes, sizes: Sizes, way: Way) -> float:
    return sizes.itemsize * (layer.parameters - layer.experts * (1 - 1 / way.experts))


def _layer_fisher(layer: LayerSizes, way: Way) -> float:
    return F32 * (layer.selected - layer.selected_experts * (1 - 1 / way.experts))


def _activations(layer: LayerSizes, sizes: Sizes, way: Way, batch: int) -> float:
    outputs = VALUES_PER_OUTPUT * sizes.itemsize * layer.outputs / way.tensor
    copies = HIDDEN_COPIES * F32 * sizes.hidden if sizes.itemsize < F32 else 0
    return batch * (outputs + copies)


def _logits(sizes: Sizes, batch: int, on_gpu: bool) -> float:
    logits = batch * sizes.vocabulary
    return LOGIT_COPIES * sizes.itemsize * logits + F32 * min(logits, GPU_CHUNK if on_gpu else CHUNK)


def _hidden(sizes: Sizes, tokens: float) -> float:
    return sizes.itemsize * sizes.hidden * tokens


def _boundaries(sizes: Sizes, way: Way, work: Work) -> float:
    """The input of every layer and one gradient, for all tokens of a rank that one pair of readings serves."""
    return (len(sizes.layers) + 1) * _hidden(sizes, work.tokens(way.samples))


def _traffic(sizes: Sizes, way: Way, machine: Machine, work: Work) -> Traffic:
    tokens = work.tokens(way.samples)
    layers = sizes.itemsize * sum(layer.parameters for layer in sizes.layers)
    link, network = _sent(sizes, way, machine, work)
    if way.stream:
        outside = 2 * sizes.itemsize * sizes.outside
        own = sum(_layer_weights(layer, sizes, way) for layer in sizes.layers) / way.shards
        read, node_read = 2 * own + outside, 2 * layers + outside
    else:
        read, node_read = sizes.model_bytes / (way.tensor * way.shards), sizes.model_bytes
    per_node = _boundaries(sizes, way, work) * way.samples / machine.nodes
    products = 8 if way.stream else 6  # forward, input gradient, square, and a second forward; two each
    return Traffic(
        read=read,
        node_read=node_read,
        written=float(sizes.fisher_bytes) * work.fishers / (machine.nodes if way.ranks > 1 else 1),
        spilled=3 * per_node if way.stream and way.boundary == "disk" else 0.0,
        link=link,
        network=network,
        flop=tokens * (products * sizes.active + 4 * sizes.head) / way.tensor,
    )


def _sent(sizes: Sizes, way: Way, machine: Machine, work: Work) -> tuple[float, float]:
    """Bytes that a rank sends within its node and to other nodes."""
    if way.ranks == 1:
        return 0.0, 0.0
    group, nodes = machine.devices, machine.nodes
    inside, across = (group - 1) / group, (nodes - 1) / nodes
    tokens = work.tokens(way.samples)
    F: float = sizes.fisher_bytes * work.fishers
    of_experts = F32 * work.fishers * float(sum(layer.selected_experts for layer in sizes.layers))
    if way.tensor > 1:  # two sums of the hidden states per layer and direction, in a ring
        sums = 4 * len(sizes.layers) * 2 * inside * _hidden(sizes, tokens)
        return sums, F / group * across
    if way.shards > 1:  # two gatherings of the weights, one reduction of F
        runs = 1 if way.stream else work.fishers
        layers = sizes.itemsize * float(sum(layer.parameters for layer in sizes.layers))
        return (2 * runs * layers + F) * inside, F / group * across
    link, network = 0.0, 0.0
    if way.experts > 1:  # there and back, forward, backward, and in the second forward
        trips = 2 * (3 if way.stream else 2) * sizes.expert_layers * sizes.chosen
        link, network = trips * inside * _hidden(sizes, tokens), of_experts / group * across
        F -= of_experts
    return link + F * (group - 1) / (group * nodes), network + F * across
