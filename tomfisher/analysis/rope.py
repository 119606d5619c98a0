"""RoPE spectrum: how much of a head's queries and keys lives in each rotary frequency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tomfisher.analysis.collect import TOKENS_PER_BATCH, collect, supported
from tomfisher.analysis.jsonable import jsonable
from tomfisher.models.families import Architecture, Rotary, describe
from tomfisher.models.queries import QueryKey
from tomfisher.ops.rope_energy import rope_energy
from tomfisher.runtime.gate import check_model
from tomfisher.runtime.torch_state import plain_torch

Part = Literal["q", "k"]
PARTS: tuple[Part, ...] = ("q", "k")
BANDS = ("slow", "middle", "fast")


@plain_torch()
def bands(frequencies: Tensor, context: int) -> Tensor:
    """The band of each rotary pair: 0 slow, 1 middle, 2 fast.

    Wavelength λ = 2π / frequency, in tokens. Slow pairs make no whole turn over the context (λ > context). The rest,
    from the shortest possible wavelength 2π to the context, is halved on a logarithmic scale: fast pairs have
    λ < √(2π·context), middle ones what lies between.

    Args:
        frequencies: `[P]`, radians per token.
        context: tokens.

    Returns:
        int64 `[P]`, indices into `BANDS`.
    """
    wavelengths = 2 * math.pi / frequencies
    return (wavelengths <= context).long() + (wavelengths < math.sqrt(2 * math.pi * context)).long()


@dataclass(frozen=True)
class LayerSpectrum:
    """One layer's mean norm and energy of every rotary pair (i, j), over all tokens of all prompts.

    Attributes:
        layer: its number.
        rotary: its frequencies `[P]`, layout and scaling.
        q_norm: float32 `[H, P]`, mean √(q_i² + q_j²) after the rotation.
        k_norm: float32 `[H_kv, P]`, the same of the keys.
        q_energy: float32 `[H, P]`, mean q_i² + q_j² after the rotation.
        k_energy: float32 `[H_kv, P]`, the same of the keys.
    """

    layer: int
    rotary: Rotary
    q_norm: Tensor
    k_norm: Tensor
    q_energy: Tensor
    k_energy: Tensor

    @plain_torch()
    def norm(self, part: Part, rotated: bool = True) -> Tensor:
        """Mean norms of q or k, after or before the rotation.

        A rotation keeps the norm of a pair, so the two differ only where a family also scales cosine and sine
        (YaRN, LongRoPE): by that factor.
        """
        norm = self.q_norm if part == "q" else self.k_norm
        return norm if rotated else norm / self.rotary.attention_factor

    def energy(self, part: Part) -> Tensor:
        """Mean energies of q or k, after the rotation."""
        return self.q_energy if part == "q" else self.k_energy

    @plain_torch()
    def dominant(self, part: Part) -> Tensor:
        """Int64 `[heads]`, the pair with the largest mean norm in each head."""
        return self.norm(part).argmax(-1)

    @plain_torch()
    def band_energy(self, part: Part, context: int) -> Tensor:
        """Float32 `[heads, 3]`, energy summed over the pairs of the slow, middle and fast band (`bands`)."""
        energy = self.energy(part)
        total = torch.zeros(energy.shape[0], len(BANDS))
        return total.index_add_(1, bands(self.rotary.frequencies, context), energy)

    @plain_torch()
    def shares(self, part: Part, context: int) -> Tensor:
        """Float32 `[heads, 3]`, each band's share of the energy of the rotated dimensions; rows sum to 1."""
        energy = self.band_energy(part, context)
        return energy / energy.sum(-1, keepdim=True)


@dataclass(frozen=True)
class RopeSpectrum:
    """The rotary frequencies of a model's queries and keys on some prompts.

    Attributes:
        layers: one for each layer that rotates.
        prompts: how many were run.
        tokens: how many tokens they have.
        context: tokens that the bands are relative to: the longest prompt, unless something else was asked for.
    """

    layers: tuple[LayerSpectrum, ...]
    prompts: int
    tokens: int
    context: int

    @plain_torch()
    def summary(self) -> list[dict[str, Any]]:
        """One row per layer and part: band shares (mean over heads) and the commonest dominant wavelength, tokens."""
        rows = []
        for layer in self.layers:
            for part in PARTS:
                shares = layer.shares(part, self.context).mean(0).tolist()
                pair = int(layer.dominant(part).mode().values)
                row = {"layer": layer.layer, "part": part, **dict(zip(BANDS, shares, strict=True))}
                rows.append(row | {"dominant": pair, "wavelength": float(layer.rotary.wavelengths[pair])})
        return rows

    @plain_torch()
    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready lists, per layer, head and pair."""
        layers = [
            {
                "layer": layer.layer,
                "frequencies": layer.rotary.frequencies,
                "attention_factor": layer.rotary.attention_factor,
                "band": [BANDS[i] for i in bands(layer.rotary.frequencies, self.context)],
                **{
                    part: {
                        "norm": layer.norm(part),
                        "norm_before_rotation": layer.norm(part, rotated=False),
                        "energy": layer.energy(part),
                        "dominant": layer.dominant(part),
                        "shares": layer.shares(part, self.context),
                    }
                    for part in PARTS
                },
            }
            for layer in self.layers
        ]
        head = {"prompts": self.prompts, "tokens": self.tokens, "context": self.context}
        return jsonable(head | {"bands": list(BANDS), "layers": layers})


class RopeCollector:
    """Sums norms and energies over tokens while a model runs.

    Args:
        architecture: of the model.

    Raises:
        UnsupportedModel: no layer of it rotates queries and keys, or how one does is not known.
    """

    def __init__(self, architecture: Architecture) -> None:
        self._rotary = {i: a.rotary for i, a in architecture.rotating().items() if a.rotary is not None}
        self._sums: dict[tuple[int, Part], Tensor] = {}
        self._tokens: dict[int, int] = dict.fromkeys(self._rotary, 0)

    def update(self, layer: int, seen: QueryKey, lengths: list[int], prompts: list[int]) -> None:
        """Add one layer of one batch."""
        rotary = self._rotary.get(layer)
        if rotary is None:
            return
        self._tokens[layer] += sum(lengths)
        for part, x in zip(PARTS, (seen.q, seen.k), strict=True):
            rotated = supported(x)[..., rotary.start :].transpose(1, 2)
            energies = rope_energy(rotated, rotary.layout, rotary.dim, lengths)
            sums = torch.stack([energies.norm, energies.energy]).double()
            self._sums[layer, part] = self._sums.get((layer, part), 0) + sums

    def result(self, lengths: Sequence[int], context: int | None = None) -> RopeSpectrum:
        """The means.

        Args:
            lengths: of all prompts that were run.
            context: see `RopeSpectrum`.
        """
        layers = []
        for layer, rotary in self._rotary.items():
            means = {part: (self._sums[layer, part] / self._tokens[layer]).float().cpu() for part in PARTS}
            q, k = means["q"], means["k"]
            layers.append(LayerSpectrum(layer, rotary, q[0], k[0], q[1], k[1]))
        return RopeSpectrum(tuple(layers), len(lengths), sum(lengths), context or max(lengths))


@plain_torch()
def rope_spectrum(
    model: Any,
    prompts: Sequence[Sequence[int] | Tensor],
    context: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = True,
) -> RopeSpectrum:
    """Measure the mean norm of every rotary pair of queries and keys, for the model as it is.

    For pair (i, j) of a head, over all tokens t of all prompts::

        norm = mean_t √(x[t, i]² + x[t, j]²)        energy = mean_t (x[t, i]² + x[t, j]²)

    Sums are taken in each layer while the model runs; no activation outlives its layer.

    Args:
        model: a causal language model of transformers, perturbed or not.
        prompts: token ids, at least two each.
        context: tokens that the bands are relative to (`bands`); None: the longest prompt.
        tokens_per_batch: upper bound of batch size times length.
        progress: show a bar on a terminal.

    Returns:
        A `RopeSpectrum` on the CPU.

    Raises:
        UnsupportedModel: the model does not rotate, or nothing is known about its attention.
        ValueError: unusable prompts.
    """
    check_model(model)
    architecture = describe(model)
    collector = RopeCollector(architecture)
    lengths = collect(model, architecture, prompts, [collector], tokens_per_batch, progress, "rope")
    return collector.result(lengths, context)
