"""What interventions need to know about the untouched model: its dominant frequencies and mean queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tomfisher.analysis.collect import Collector, collect
from tomfisher.analysis.rope import RopeCollector, RopeSpectrum
from tomfisher.models.families import describe
from tomfisher.models.queries import QueryKey
from tomfisher.runtime.torch_state import plain_torch


@dataclass(frozen=True)
class Internals:
    """Means over some prompts, taken on the untouched model.

    Attributes:
        spectrum: its rotary frequencies; None where it does not rotate.
        mean_query: per layer with attention the mean of the rotated queries at positions t >= 1, `[H, D]` float32.
        longest: tokens of the longest prompt; frequency bands are relative to it.
        shortest: tokens of the shortest prompt.
    """

    spectrum: RopeSpectrum | None = None
    mean_query: dict[int, Tensor] = field(default_factory=dict)
    longest: int = 0
    shortest: int = 0


@plain_torch()
def measure_internals(model: Any, prompts: Sequence[Sequence[int] | Tensor]) -> Internals:
    """Run prompts through a model as it is, once.

    Args:
        model: a causal language model of transformers.
        prompts: token ids, at least two each.

    Returns:
        `Internals`; without a spectrum for a model that does not rotate, without anything but the lengths for one
        that has no attention.

    Raises:
        UnsupportedModel: nothing is known about its attention.
        ValueError: unusable prompts.
    """
    architecture = describe(model)
    queries = _MeanQuery()
    collectors: list[Collector] = [queries]
    rope = None
    if architecture.rotates:
        rope = RopeCollector(architecture)
        collectors.append(rope)
    lengths = collect(model, architecture, prompts, collectors, progress=False)
    spectrum = None if rope is None else rope.result(lengths)
    return Internals(spectrum, queries.result(), max(lengths), min(lengths))


class _MeanQuery:
    """Sums the rotated queries after the first token of each prompt."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._tokens: dict[int, int] = {}

    def update(self, layer: int, seen: QueryKey, lengths: list[int], prompts: list[int]) -> None:
        """Add one layer of one batch."""
        position = torch.arange(seen.q.shape[2], device=seen.q.device)
        ends = torch.tensor(lengths, device=seen.q.device)[:, None]
        later = ((position >= 1) & (position < ends)).double()
        total = torch.einsum("bhtd,bt->hd", seen.q.double(), later)
        self._sums[layer] = self._sums.get(layer, 0) + total
        self._tokens[layer] = self._tokens.get(layer, 0) + sum(lengths) - len(lengths)

    def result(self) -> dict[int, Tensor]:
        """The means, float32 on the CPU."""
        return {layer: (total / self._tokens[layer]).float().cpu() for layer, total in self._sums.items()}
