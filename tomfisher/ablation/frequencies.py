"""Scaling rotary frequencies of queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tomfisher.ablation.call import Edit
from tomfisher.ablation.internals import Internals, needed, rotating
from tomfisher.ablation.intervention import Intervention, Place, finite, key_heads, number, places
from tomfisher.analysis.rope import BANDS, PARTS, Part, bands
from tomfisher.models.families import Architecture, Attention
from tomfisher.runtime.gate import position_limit

DOMINANT = "dominant"


@dataclass(frozen=True)
class ScaleBand(Intervention):
    """Rotary pairs of q and k times a factor; a rotation keeps a pair's norm, so after it is as before it."""

    band: str | tuple[int, ...]
    factor: float
    parts: tuple[Part, ...]
    context: int | None
    seed: int | None = None

    @property
    def name(self) -> str:
        """`scale-band:slow:0.5`, `scale-pairs:3.7:0.5:q`."""
        named = isinstance(self.band, str)
        band = f"band:{self.band}" if named else f"pairs:{'.'.join(map(str, self.band))}"
        part = f":{self.parts[0]}" if len(self.parts) == 1 else ""
        return f"scale-{band}:{number(self.factor)}{part}{self.where}"

    def bind(self, model: Any, architecture: Architecture, internals: Internals | None) -> dict[int, Edit]:
        """See `Intervention.bind`."""
        rotating(architecture, self.name)
        heads = self.heads(architecture)
        edits = {}
        for layer, chosen in heads.items():
            attention = architecture.attention[layer]
            if attention.rotary is None:
                continue
            factors: list[Tensor | None] = [None, None]
            for i, part in enumerate(PARTS):
                if part in self.parts:
                    pairs = self._pairs(layer, part, model, architecture, internals)
                    keep = torch.zeros(len(pairs), 1, dtype=torch.bool)
                    keep[chosen if part == "q" else key_heads(attention, chosen)] = True
                    factors[i] = _per_dimension(attention, pairs & keep, self.factor)
            edits[layer] = _scaling(*factors)
        return edits

    def control(self, seed: int, internals: Internals) -> ScaleBand:
        """As many pairs of each head, drawn at random."""
        return replace(self, seed=seed)

    def _pairs(
        self, layer: int, part: Part, model: Any, architecture: Architecture, internals: Internals | None
    ) -> Tensor:
        """Bool `[heads, P]`: the pairs to scale in one layer."""
        attention = architecture.attention[layer]
        rotary = attention.rotary
        assert rotary is not None
        count, heads = len(rotary.frequencies), attention.heads if part == "q" else attention.kv_heads
        if self.band == DOMINANT:
            spectrum = needed(architecture, internals, self.name).spectrum
            assert spectrum is not None
            (own,) = (s for s in spectrum.layers if s.layer == layer)
            pairs = torch.nn.functional.one_hot(own.dominant(part), count).bool()
        elif isinstance(self.band, str):
            of_band = bands(rotary.frequencies, self._context(model, internals)) == BANDS.index(self.band)
            pairs = of_band.expand(heads, count)
        else:
            if max(self.band) >= count:
                raise ValueError(f"{self.name}: layer {layer} has rotary pairs 0 to {count - 1}.")
            pairs = torch.zeros(heads, count, dtype=torch.bool)
            pairs[:, list(self.band)] = True
        if self.seed is None:
            return pairs
        generator = torch.Generator().manual_seed(self.seed * 1009 + layer * 2 + PARTS.index(part))
        return torch.stack([row[torch.randperm(count, generator=generator)] for row in pairs])

    def _context(self, model: Any, internals: Internals | None) -> int:
        context = self.context or (internals.longest if internals else None) or position_limit(model)
        if context is None:
            raise ValueError(
                f"{self.name}: give context, the tokens that the bands are relative to; the model names no limit."
            )
        return context


def scale_band(
    band: str,
    factor: float,
    parts: Sequence[Part] = PARTS,
    context: int | None = None,
    at: Sequence[Place] | None = None,
) -> ScaleBand:
    """Multiply a frequency band of queries and keys by a factor; a score's share from there goes by its square.

    Args:
        band: "slow", "middle" or "fast" (`tomfisher.analysis.bands`), or "dominant": in each head the pair with
            the largest mean norm on the untouched model.
        factor: any finite number; 0 removes the band, 1 changes nothing.
        parts: "q", "k" or both.
        context: tokens that the bands are relative to; None: the longest prompt of the internals, or the model's
            positions.
        at: layers, or (layer, query head) pairs; None: everywhere.

    Raises:
        ValueError: an unknown band or part, or a factor that is not finite.
    """
    if band not in (*BANDS, DOMINANT):
        raise ValueError(f"band must be one of {', '.join((*BANDS, DOMINANT))}, got {band!r}.")
    return ScaleBand(places(at), band, finite(factor, "factor"), _parts(parts), context)


def scale_pairs(
    pairs: Sequence[int], factor: float, parts: Sequence[Part] = PARTS, at: Sequence[Place] | None = None
) -> ScaleBand:
    """Multiply named rotary pairs of queries and keys by a factor; pair 0 is the fastest.

    Args:
        pairs: numbers of the pairs.
        factor: any finite number.
        parts: "q", "k" or both.
        at: layers, or (layer, query head) pairs; None: everywhere.

    Raises:
        ValueError: no pairs, a negative one, an unknown part, or a factor that is not finite.
    """
    if not pairs or min(pairs) < 0:
        raise ValueError(f"pairs must be numbers from 0 on, at least one, got {list(pairs)}.")
    return ScaleBand(places(at), tuple(sorted(set(pairs))), finite(factor, "factor"), _parts(parts), None)


def _per_dimension(attention: Attention, pairs: Tensor, factor: float) -> Tensor:
    """Float64 `[heads, 1, D]`, the factor at both dimensions of the chosen pairs, else 1."""
    assert attention.rotary is not None
    factors = torch.ones(len(pairs), attention.head_dim, dtype=torch.float64)
    for column in attention.rotary.pairs.T:
        factors[:, column] = torch.where(pairs, factor, 1.0).double()
    return factors[:, None]


def _scaling(q: Tensor | None, k: Tensor | None) -> Edit:
    def scaled(x: Tensor, factors: Tensor | None) -> Tensor:
        if factors is None:
            return x
        wide = torch.promote_types(x.dtype, torch.float32)
        return (x.to(wide) * factors.to(x.device, wide)).to(x.dtype)

    return lambda call: call._replace(query=scaled(call.query, q), key=scaled(call.key, k))


def _parts(parts: Sequence[Part]) -> tuple[Part, ...]:
    chosen = tuple(part for part in PARTS if part in parts)
    if not chosen or set(parts) - set(PARTS):
        raise ValueError(f"parts must be 'q', 'k' or both, got {parts!r}.")
    return chosen
