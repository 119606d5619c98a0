"""Taking attention off one token, the first unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tomfisher.interventions.base import OneToken, Target
from tomfisher.interventions.inputs import AttentionInputs, Edit
from tomfisher.models.families import Attention, UnsupportedModel


@dataclass(frozen=True)
class OffSink(OneToken):
    """Multiply every query's attention to the first token by a factor; the other weights grow in proportion.

    With own score s and r = logsumexp of the others, s falls by logaddexp(r, s + log(1 - f)) - r - log f. A query that
    sees no other key keeps its weight of 1; f = 0 hides the key from all others. Works with eager and sdpa attention,
    exact up to the rounding of the scores in the model's dtype.

    Args:
        value: the factor f, from 0 (attention as if the token could not be seen) to 1.
        position: see `OneToken`.
        at: see `Intervention`.

    Raises:
        ValueError: a factor out of range, or a negative position.
    """

    kind: ClassVar[str] = "off-sink"
    form: ClassVar[str] = "off-sink:FACTOR[:TOKEN]"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.value <= 1:
            raise ValueError(
                f"factor must lie from 0 to 1: what part of the attention stays; got {self.value}."
            )

    def bind(self, target: Target) -> dict[int, Edit]:
        """See `Intervention.bind`."""
        layers, heads = target.architecture.attention, self.heads(target.architecture)
        for layer in heads:
            module: Any = layers[layer].module
            if (implementation := module.config._attn_implementation) not in ("eager", "sdpa"):
                raise UnsupportedModel(
                    f"{self.name} adds to attention scores, which {implementation!r} does not take. Load the model "
                    "with attn_implementation='eager' or 'sdpa'."
                )
        return {layer: self._edit(layers[layer], chosen) for layer, chosen in heads.items()}

    def _edit(self, attention: Attention, heads: Tensor) -> Edit:
        acts = torch.zeros(attention.heads, 1, dtype=torch.bool)
        acts[heads] = True

        def lower(inputs: AttentionInputs) -> AttentionInputs:
            index, present = inputs.slot(self.position)
            scores = inputs.scores()
            at = index[:, None, None, None].expand(*scores.shape[:3], 1)
            own = scores.gather(-1, at)[..., 0]
            rest = scores.scatter(-1, at, -torch.inf).logsumexp(-1)
            if inputs.sinks is not None:
                null = inputs.sinks.to(rest)
                rest = torch.logaddexp(rest, null if null.ndim > 1 else null[:, None])
            kept, moved = (own.new_tensor(x).log() for x in (self.value, 1 - self.value))
            bias = kept + rest - torch.logaddexp(rest, own + moved)
            movable = own.isfinite() & rest.isfinite() & present[:, None, None] & acts.to(own.device)
            return inputs.with_bias(bias.where(movable, 0.0), index)

        return lower
