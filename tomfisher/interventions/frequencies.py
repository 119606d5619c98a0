"""Scaling rotary frequencies of queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from tomfisher.analysis.rope import BANDS, PARTS, Part, bands
from tomfisher.interventions.base import (
    FormError,
    Intervention,
    Place,
    Target,
    finite,
    key_heads,
    number,
    read_integers,
    read_number,
)
from tomfisher.interventions.inputs import AttentionInputs, Edit
from tomfisher.interventions.internals import Internals
from tomfisher.models.families import Attention, UnsupportedModel
from tomfisher.runtime.positions import position_limit

if TYPE_CHECKING:
    from typing_extensions import Self

DOMINANT = "dominant"


@dataclass(frozen=True)
class ScalePairs(Intervention):
    """Multiply rotary pairs of queries and keys by a factor; pair 0 is the fastest.

    A rotation keeps a pair's norm, so scaling after it is scaling before it. A score's share from there goes by the
    square of the factor.

    Args:
        pairs: numbers of the pairs.
        factor: any finite number; 0 removes the pairs, 1 changes nothing.
        parts: "q", "k" or both.
        at: see `Intervention`.

    Raises:
        ValueError: no pairs, a negative one, an unknown part, or a factor that is not finite.
    """

    kind: ClassVar[str] = "scale-pairs"
    form: ClassVar[str] = "scale-pairs:PAIR.PAIR...:FACTOR[:q|:k]"

    pairs: Sequence[int] | str
    factor: float
    parts: Sequence[Part] = PARTS
    seed: int | None = None  # of a control, which takes as many pairs at random

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(pairs=self._checked(self.pairs), factor=finite(self.factor, "factor"))
        if not self.parts or set(self.parts) - set(PARTS):
            raise ValueError(f"parts must be 'q', 'k' or both, got {self.parts!r}.")
        self._set(parts=tuple(part for part in PARTS if part in self.parts))

    def _checked(self, pairs: Any) -> Any:
        if not pairs or min(pairs) < 0:
            raise ValueError(f"pairs must be numbers from 0 on, at least one, got {list(pairs)}.")
        return tuple(sorted(set(pairs)))

    @property
    def arguments(self) -> tuple[str, ...]:
        """Pairs, factor, and the part if it is only one."""
        pairs = self.pairs if isinstance(self.pairs, str) else ".".join(map(str, self.pairs))
        return (pairs, number(self.factor), *(self.parts if len(self.parts) == 1 else ()))

    @classmethod
    def from_arguments(cls, arguments: Sequence[str], at: Sequence[Place] | None) -> Self:
        """See `Intervention.from_arguments`."""
        if len(arguments) not in (2, 3):
            raise FormError
        parts = [part for part in PARTS if len(arguments) == 2 or part == arguments[2]]
        if not parts:
            raise FormError
        return cls(cls._read(arguments[0]), read_number(arguments[1]), parts, at=at)

    @staticmethod
    def _read(text: str) -> Sequence[int] | str:
        return read_integers(text)

    def bind(self, target: Target) -> dict[int, Edit]:
        """See `Intervention.bind`."""
        architecture = target.architecture
        try:
            architecture.rotating()
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{self.name}: {error}") from error
        edits = {}
        for layer, chosen in self.heads(architecture).items():
            attention = architecture.attention[layer]
            if attention.rotary is None:
                continue
            factors: list[Tensor | None] = [None, None]
            for i, part in enumerate(PARTS):
                if part in self.parts:
                    heads = chosen if part == "q" else key_heads(attention, chosen)
                    pairs = self._of_layer(target, layer, part)
                    acts = torch.zeros(len(pairs), 1, dtype=torch.bool)
                    acts[heads] = True
                    factors[i] = _per_dimension(
                        attention, self._permuted(pairs, layer, part) & acts, self.factor
                    )
            edits[layer] = _scaling(*factors)
        return edits

    def control(self, seed: int, internals: Internals) -> Self:
        """As many pairs of each head, drawn at random."""
        return replace(self, seed=seed)

    def _of_layer(self, target: Target, layer: int, part: Part) -> Tensor:
        """Bool `[heads, P]`: the pairs to scale in one layer."""
        heads, count = _shape(target.architecture.attention[layer], part)
        numbers = [int(pair) for pair in self.pairs]
        if max(numbers) >= count:
            raise ValueError(f"{self.name}: layer {layer} has rotary pairs 0 to {count - 1}.")
        pairs = torch.zeros(heads, count, dtype=torch.bool)
        pairs[:, numbers] = True
        return pairs

    def _permuted(self, pairs: Tensor, layer: int, part: Part) -> Tensor:
        """The pairs, or as many random ones of each head for a control."""
        if self.seed is None:
            return pairs
        generator = torch.Generator().manual_seed(self.seed * 1009 + layer * 2 + PARTS.index(part))
        return torch.stack([row[torch.randperm(len(row), generator=generator)] for row in pairs])


@dataclass(frozen=True)
class ScaleBand(ScalePairs):
    """Multiply a frequency band of queries and keys by a factor.

    Args:
        pairs: "slow", "middle" or "fast" (`tomfisher.analysis.bands`), or "dominant": in each head the pair with the
            largest mean norm on the untouched model.
        factor: see `ScalePairs`.
        parts: see `ScalePairs`.
        context: tokens that the bands are relative to; None: the longest prompt of the internals, or the model's
            positions.
        at: see `Intervention`.

    Raises:
        ValueError: an unknown band or part, or a factor that is not finite.
    """

    kind: ClassVar[str] = "scale-band"
    form: ClassVar[str] = "scale-band:BAND:FACTOR[:q|:k]"

    context: int | None = None

    def _checked(self, pairs: Any) -> Any:
        if pairs not in (*BANDS, DOMINANT):
            raise ValueError(f"band must be one of {', '.join((*BANDS, DOMINANT))}, got {pairs!r}.")
        return pairs

    @staticmethod
    def _read(text: str) -> str:
        return text

    def _of_layer(self, target: Target, layer: int, part: Part) -> Tensor:
        attention, internals = target.architecture.attention[layer], target.internals
        assert attention.rotary is not None
        heads, count = _shape(attention, part)
        if self.pairs == DOMINANT:
            spectrum = target.measured(self.name).spectrum
            assert spectrum is not None
            (own,) = (s for s in spectrum.layers if s.layer == layer)
            return torch.nn.functional.one_hot(own.dominant(part), count).bool()
        context = self.context or (internals.longest if internals else None) or position_limit(target.model)
        if context is None:
            raise ValueError(
                f"{self.name}: give context, the tokens that the bands are relative to; the model names no limit."
            )
        band = [*BANDS].index(str(self.pairs))
        return (bands(attention.rotary.frequencies, context) == band).expand(heads, count)


def _shape(attention: Attention, part: Part) -> tuple[int, int]:
    """Heads and rotary pairs of the queries or keys of a layer."""
    assert attention.rotary is not None
    return attention.heads if part == "q" else attention.kv_heads, len(attention.rotary.frequencies)


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

    def edit(inputs: AttentionInputs) -> AttentionInputs:
        return inputs._replace(query=scaled(inputs.query, q), key=scaled(inputs.key, k))

    return edit
