"""Attention sinks: how much attention the first token gets, and why, from queries and keys alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from tomfisher.analysis.collect import TOKENS_PER_BATCH, collect, supported
from tomfisher.analysis.jsonable import jsonable
from tomfisher.models.families import Architecture, UnsupportedModel, describe
from tomfisher.models.queries import QueryKey, attention_weights
from tomfisher.ops.sink_mass import SinkMass, sink_mass
from tomfisher.runtime.gate import check_model
from tomfisher.runtime.torch_state import plain_torch

EPSILON = 0.3
WINDOW = 64
ROWS = 256  # queries whose attention is in memory at one time
Head = tuple[int, int]


@dataclass(frozen=True)
class LayerSinks:
    """One layer's attention to the first token; `A` is the attention map, t >= 1 a query position.

    All means but `sink_rate` run over the positions t >= 1 of all prompts: position 0 can only attend to itself.

    Attributes:
        layer: its number.
        first_mass: float32 `[H]`, mean A[t, 0].
        entropy: float32 `[H]`, mean entropy of A[t], nats.
        cosine: float32 `[H]`, mean cos(q_t, k_0) after the rotation.
        angle: float32 `[H]`, mean angle between q_t and k_0, degrees; 90 is orthogonal.
        key_norm: float32 `[H_kv]`, mean ‖k_0‖ over the prompts.
        key_ratio: float32 `[H_kv]`, `key_norm` over the mean ‖k_t‖.
        sink_rate: float32 `[H, window]`, share of the prompts in which key j is a sink (`AttentionSinks`).
    """

    layer: int
    first_mass: Tensor
    entropy: Tensor
    cosine: Tensor
    angle: Tensor
    key_norm: Tensor
    key_ratio: Tensor
    sink_rate: Tensor


MEASURES = tuple(field.name for field in fields(LayerSinks) if field.name not in ("layer", "sink_rate"))


@dataclass(frozen=True)
class AttentionSinks:
    """The attention sinks of a model on some prompts.

    A key j is a sink of a head and prompt if the mean of A[t, j] over the queries j <= t < window of the prompt's
    first `window` tokens exceeds `epsilon`.

    Attributes:
        layers: one for each layer with attention.
        prompts: how many were run.
        tokens: how many tokens they have.
        long_prompts: how many have `window` tokens or more: those that `sink_rate` is about; where there are none
            it is NaN.
        epsilon: threshold of the sink metric.
        window: tokens of the sink metric.
        maps: for each head (layer, head) that was asked for, the maps `[T, T]` of the first prompts, float32.
    """

    layers: tuple[LayerSinks, ...]
    prompts: int
    tokens: int
    long_prompts: int
    epsilon: float
    window: int
    maps: dict[Head, list[Tensor]]

    @plain_torch()
    def metric(self) -> Tensor:
        """Float32 `[window]`, `sink_rate` averaged over all heads of all layers, from 0 to 1.

        Source: Gu et al., When Attention Sink Emerges in Language Models (arXiv 2410.10781), whose code gives it in
        percent.
        """
        return torch.cat([layer.sink_rate for layer in self.layers]).mean(0)

    @plain_torch()
    def summary(self) -> list[dict[str, Any]]:
        """One row per layer: the mean over its heads of every measure, and of the first key's sink rate."""
        return [
            {
                "layer": layer.layer,
                **{name: float(getattr(layer, name).mean()) for name in MEASURES},
                "sink_rate": float(layer.sink_rate[:, 0].mean()),
            }
            for layer in self.layers
        ]

    @plain_torch()
    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready lists, per layer and head; maps under "LAYER.HEAD"."""
        layers = [
            {field.name: getattr(layer, field.name) for field in fields(layer)} for layer in self.layers
        ]
        head = {key: getattr(self, key) for key in ("prompts", "tokens", "long_prompts", "epsilon", "window")}
        maps = {f"{layer}.{index}": by_prompt for (layer, index), by_prompt in self.maps.items()}
        return jsonable(head | {"metric": self.metric(), "layers": layers, "maps": maps})


class SinkCollector:
    """Sums up the attention to the first token while a model runs.

    Args:
        architecture: of the model.
        epsilon: threshold of the sink metric.
        window: tokens of the sink metric.
        heads: (layer, head) whose whole maps are kept.
        map_prompts: of how many prompts, from the first one on, maps are kept.

    Raises:
        UnsupportedModel: the model has no attention.
        ValueError: a head that the model does not have.
    """

    def __init__(
        self,
        architecture: Architecture,
        epsilon: float = EPSILON,
        window: int = WINDOW,
        heads: Iterable[Head] = (),
        map_prompts: int = 1,
    ) -> None:
        layers = architecture.attending("sink to look at")
        for attention in layers.values():
            if "weights" in attention.lacks:
                raise UnsupportedModel(attention.lacks["weights"])
        self._epsilon, self._window, self._map_prompts = epsilon, window, map_prompts
        self._maps: dict[Head, dict[int, Tensor]] = {(layer, head): {} for layer, head in heads}
        for layer, head in self._maps:
            if layer not in layers or not 0 <= head < layers[layer].heads:
                raise ValueError(
                    f"There is no attention head {layer}.{head}. Layers with attention: "
                    f"{', '.join(map(str, layers))}; heads of each: {next(iter(layers.values())).heads}."
                )
        self._sums: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}

    def update(self, layer: int, seen: QueryKey, lengths: list[int], prompts: list[int]) -> None:
        """Add one layer of one batch."""
        seen = seen._replace(q=supported(seen.q), k=supported(seen.k))
        sums = self._sums[layer]
        for name, value in (_sums(seen, lengths) | self._sinks(seen, lengths)).items():
            sums[name] = sums.get(name, 0) + value.double()
        for asked, by_prompt in self._maps.items():
            if asked[0] == layer:
                for row, prompt in enumerate(prompts):
                    if prompt < self._map_prompts:
                        by_prompt[prompt] = attention_map(seen, row, asked[1], lengths[row]).cpu()

    def _sinks(self, seen: QueryKey, lengths: list[int]) -> dict[str, Tensor]:
        """In how many of the long prompts each of the first keys is a sink, `[H, window]`."""
        long = [row for row, length in enumerate(lengths) if length >= self._window]
        if not long:
            return {}
        masses = mass(seen.take(long, self._window))
        return {"sink_rate": (masses.column_mean > self._epsilon).sum(0)}

    def result(self, lengths: Sequence[int]) -> AttentionSinks:
        """The means.

        Args:
            lengths: of all prompts that were run.
        """
        long = sum(length >= self._window for length in lengths)
        layers = [self._layer(layer, sums, lengths, long) for layer, sums in self._sums.items()]
        maps = {head: [by_prompt[i] for i in sorted(by_prompt)] for head, by_prompt in self._maps.items()}
        return AttentionSinks(
            tuple(layers), len(lengths), sum(lengths), long, self._epsilon, self._window, maps
        )

    def _layer(self, layer: int, sums: dict[str, Tensor], lengths: Sequence[int], long: int) -> LayerSinks:
        later = sum(lengths) - len(lengths)
        means = {
            name: (sums[name] / later).float().cpu() for name in ("first_mass", "entropy", "cosine", "angle")
        }
        first, others = sums["first_norm"] / len(lengths), sums["other_norm"] / later
        heads = len(means["cosine"])
        rate = sums["sink_rate"] / long if long else torch.full((heads, self._window), torch.nan)
        norms = {"key_norm": first.float().cpu(), "key_ratio": (first / others).float().cpu()}
        return LayerSinks(layer=layer, **means, **norms, sink_rate=rate.float().cpu())


def _sums(seen: QueryKey, lengths: list[int]) -> dict[str, Tensor]:
    """Sums over prompts and positions t >= 1, `[H]` or `[H_kv]`."""
    masses = mass(seen, lengths)
    q, k = seen.q.float(), seen.k.float()
    q_norm, k_norm = q.norm(dim=-1), k.norm(dim=-1)
    groups = q.shape[1] // k.shape[1]
    first = k[:, :, :1].repeat_interleave(groups, dim=1)
    product = (q * first).sum(-1)
    norms = q_norm * k_norm[:, :, :1].repeat_interleave(groups, dim=1)
    cosine = (product / norms.clamp_min(torch.finfo(torch.float32).tiny)).clamp(-1, 1)
    position = torch.arange(q.shape[2], device=q.device)
    ends = torch.tensor(lengths, device=q.device)[:, None, None]
    later = (position >= 1) & (position < ends)
    return {
        "first_mass": masses.first_mass[:, :, 1:].sum((0, 2)),
        "entropy": masses.entropy[:, :, 1:].sum((0, 2)),
        "cosine": (cosine * later).sum((0, 2)),
        "angle": (cosine.acos().rad2deg() * later).sum((0, 2)),
        "first_norm": k_norm[:, :, 0].sum(0),
        "other_norm": (k_norm * later).sum((0, 2)),
    }


def mass(seen: QueryKey, lengths: Sequence[int] | None = None) -> SinkMass:
    """`tomfisher.ops.sink_mass` of what a layer computes with; scores that it does not know, some rows at a time.

    Args:
        seen: queries and keys of a batch.
        lengths: of its rows; None: all positions count.
    """
    if seen.plain:
        return sink_mass(seen.q, seen.k, seen.scale, lengths=lengths, slopes=seen.slopes, window=seen.window)
    rows, heads, length, _ = seen.q.shape
    first, entropy, columns = (seen.q.new_zeros(rows, heads, length, dtype=torch.float32) for _ in range(3))
    position = torch.arange(length, device=seen.q.device)
    ends = torch.tensor([length] * rows if lengths is None else list(lengths), device=seen.q.device)
    real = (position < ends[:, None])[:, None]
    for low in range(0, length, ROWS):
        block = slice(low, min(low + ROWS, length))
        weights = attention_weights(seen, low, block.stop) * real[:, :, block, None]
        first[:, :, block] = weights[..., 0]
        entropy[:, :, block] = torch.special.entr(weights).sum(-1)
        columns += weights.sum(-2)
    return SinkMass(first, entropy, columns / (ends[:, None, None] - position).clamp_min(1))


def attention_map(seen: QueryKey, row: int, head: int, length: int) -> Tensor:
    """The attention weights of one head on one prompt, float32 `[T, T]`.

    Args:
        seen: queries and keys of a batch.
        row: of the batch.
        head: query head.
        length: T, tokens of that row.
    """
    return attention_weights(seen.take([row], length).head(head))[0, 0]


@plain_torch()
def attention_sinks(
    model: Any,
    prompts: Sequence[Sequence[int] | Tensor],
    epsilon: float = EPSILON,
    window: int = WINDOW,
    heads: Iterable[Head] = (),
    map_prompts: int = 1,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = True,
) -> AttentionSinks:
    """Measure every head's attention to the first token, for the model as it is.

    Masses and entropies come from queries and keys (`tomfisher.ops.sink_mass`), so any attention implementation
    will do, and no `[T, T]` map is stored but for the heads that are named.

    Args:
        model: a causal language model of transformers, perturbed or not.
        prompts: token ids, at least two each; what stands first (usually a begin-of-sequence token) is the sink.
        epsilon: a key is a sink if its mean attention exceeds this.
        window: the sink metric looks at the first so many tokens of the prompts that have them.
        heads: (layer, head) whose whole maps are wanted.
        map_prompts: of how many prompts, from the first one on.
        tokens_per_batch: upper bound of batch size times length.
        progress: show a bar on a terminal.

    Returns:
        `AttentionSinks` on the CPU.

    Raises:
        UnsupportedModel: the model has no attention, or nothing is known about it.
        ValueError: unusable prompts, or a head that the model does not have.
    """
    check_model(model)
    architecture = describe(model)
    collector = SinkCollector(architecture, epsilon, window, heads, map_prompts)
    return collector.result(
        collect(model, architecture, prompts, [collector], tokens_per_batch, progress, "sinks")
    )
