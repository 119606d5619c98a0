"""Moving attention off one token, the first unless told otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tomfisher.ablation.call import AttentionCall, Edit
from tomfisher.ablation.internals import Internals
from tomfisher.ablation.intervention import (
    Intervention,
    Place,
    number,
    other_position,
    places,
    token_name,
    token_position,
)
from tomfisher.models.families import Architecture, Attention, UnsupportedModel


@dataclass(frozen=True)
class OffSink(Intervention):
    """Attention to one token times a factor, the other weights growing in proportion.

    With own score s and r = logsumexp of the others, s falls by logaddexp(r, s + log(1 - f)) - r - log f. A query that
    sees no other key keeps its weight of 1; f = 0 hides the key from all others.
    """

    factor: float
    position: int = 0

    @property
    def name(self) -> str:
        """`off-sink:0.1`."""
        return f"off-sink:{number(self.factor)}{token_name(self.position)}{self.where}"

    def bind(self, model: Any, architecture: Architecture, internals: Internals | None) -> dict[int, Edit]:
        """See `Intervention.bind`."""
        heads = self.heads(architecture)
        for layer in heads:
            module: Any = architecture.attention[layer].module
            if (implementation := module.config._attn_implementation) not in ("eager", "sdpa"):
                raise UnsupportedModel(
                    f"{self.name} adds to attention scores, which {implementation!r} does not take. Load the model "
                    "with attn_implementation='eager' or 'sdpa'."
                )
        return {layer: self._edit(architecture.attention[layer], chosen) for layer, chosen in heads.items()}

    def _edit(self, attention: Attention, chosen: Tensor) -> Edit:
        here = torch.zeros(attention.heads, 1, dtype=torch.bool)
        here[chosen] = True

        def lower(call: AttentionCall) -> AttentionCall:
            index, there = call.slot(self.position)
            scores = call.scores()
            at = index[:, None, None, None].expand(*scores.shape[:3], 1)
            own = scores.gather(-1, at)[..., 0]
            rest = scores.scatter(-1, at, -torch.inf).logsumexp(-1)
            if call.sinks is not None:
                null = call.sinks.to(rest)
                rest = torch.logaddexp(rest, null if null.ndim > 1 else null[:, None])
            kept, moved = (own.new_tensor(x).log() for x in (self.factor, 1 - self.factor))
            bias = kept + rest - torch.logaddexp(rest, own + moved)
            movable = own.isfinite() & rest.isfinite() & there[:, None, None] & here.to(own.device)
            return call.with_bias(bias.where(movable, 0.0), index)

        return lower

    def control(self, seed: int, internals: Internals) -> OffSink:
        """The key of another token."""
        return replace(self, position=other_position(seed, internals))


def off_sink(factor: float, position: int = 0, at: Sequence[Place] | None = None) -> OffSink:
    """Multiply every query's attention to the first token by a factor, and share out what is set free.

    Works with eager and sdpa attention; exact up to the rounding of the scores in the model's dtype.

    Args:
        factor: from 0 (attention as if the first token could not be seen) to 1.
        position: of the token; 0 is the first that is no padding.
        at: layers, or (layer, query head) pairs; None: everywhere.

    Raises:
        ValueError: a factor out of range, or a negative position.
    """
    if not 0 <= factor <= 1:
        raise ValueError(f"factor must lie from 0 to 1: what part of the attention stays; got {factor}.")
    return OffSink(places(at), float(factor), token_position(position))
