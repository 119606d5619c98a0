"""Before and after: what a perturbation did to frequencies and sinks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tomfisher.analysis.jsonable import jsonable
from tomfisher.analysis.rope import BANDS, PARTS, LayerSpectrum, Part, RopeSpectrum
from tomfisher.analysis.sinks import MEASURES, AttentionSinks, LayerSinks
from tomfisher.runtime.torch_state import plain_torch


class PairChange(NamedTuple):
    """One rotary pair of one head: its mean norm before and after, and (after - before) / before."""

    layer: int
    part: Part
    head: int
    pair: int
    wavelength: float
    before: float
    after: float
    change: float


class HeadChange(NamedTuple):
    """One query head: its attention to the first token and its angle to that token's key, before and after."""

    layer: int
    head: int
    mass_before: float
    mass_after: float
    angle_before: float
    angle_after: float


@dataclass(frozen=True)
class SpectrumChange:
    """Two spectra of one model on the same prompts; made by `compare`.

    Attributes:
        before: the first.
        after: the second.
    """

    before: RopeSpectrum
    after: RopeSpectrum

    def _layers(self) -> list[tuple[LayerSpectrum, LayerSpectrum]]:
        return list(zip(self.before.layers, self.after.layers, strict=True))

    def norms(self, part: Part) -> list[Tensor]:
        """Per layer, float32 `[heads, P]`: relative change of each pair's mean norm; -1 is all of it gone."""
        return [relative(before.norm(part), after.norm(part)) for before, after in self._layers()]

    def bands(self, part: Part) -> list[Tensor]:
        """Per layer, float32 `[heads, 3]`: relative change of each band's root-mean-square norm."""
        context = self.before.context
        return [
            relative(before.band_energy(part, context).sqrt(), after.band_energy(part, context).sqrt())
            for before, after in self._layers()
        ]

    def largest(self, n: int = 10) -> list[PairChange]:
        """The n pairs whose mean norm changed most, in proportion to what it was."""
        pairs = []
        for part in PARTS:
            for (before, after), change in zip(self._layers(), self.norms(part), strict=True):
                order = change.abs().flatten().argsort(descending=True, stable=True)[:n]
                for head, pair in (divmod(i, change.shape[1]) for i in order.tolist()):
                    wavelength = float(before.rotary.wavelengths[pair])
                    values = (float(x[head, pair]) for x in (before.norm(part), after.norm(part), change))
                    pairs.append(PairChange(before.layer, part, head, pair, wavelength, *values))
        return sorted(pairs, key=lambda pair: -abs(pair.change))[:n]

    @plain_torch()
    def summary(self) -> list[dict[str, Any]]:
        """One row per layer and part: the bands' relative change (mean over heads), and heads whose dominant moved."""
        rows = []
        for part in PARTS:
            for (before, after), change in zip(self._layers(), self.bands(part), strict=True):
                moved = int((before.dominant(part) != after.dominant(part)).sum())
                shares = dict(zip(BANDS, change.mean(0).tolist(), strict=True))
                rows.append({"layer": before.layer, "part": part, **shares, "dominant_moved": moved})
        return sorted(rows, key=lambda row: row["layer"])

    @plain_torch()
    def to_dict(self) -> dict[str, Any]:
        """Relative changes as JSON-ready lists, per layer, head and pair or band, and the largest."""
        layers = [layer.layer for layer in self.before.layers]
        parts: dict[str, Any] = {
            part: [
                {"layer": layer, "norm": norm, "bands": bands}
                for layer, norm, bands in zip(layers, self.norms(part), self.bands(part), strict=True)
            ]
            for part in PARTS
        }
        return jsonable(parts | {"largest": [pair._asdict() for pair in self.largest()]})


@dataclass(frozen=True)
class SinkChange:
    """Two measurements of one model's sinks on the same prompts; made by `compare`.

    Attributes:
        before: the first.
        after: the second.
    """

    before: AttentionSinks
    after: AttentionSinks

    def _layers(self) -> list[tuple[LayerSinks, LayerSinks]]:
        return list(zip(self.before.layers, self.after.layers, strict=True))

    def difference(self, measure: str) -> list[Tensor]:
        """Per layer, after minus before of one measure of `LayerSinks`."""
        return [getattr(after, measure) - getattr(before, measure) for before, after in self._layers()]

    def largest(self, n: int = 10) -> list[HeadChange]:
        """The n heads whose attention to the first token changed most."""
        heads = [
            HeadChange(
                before.layer,
                head,
                *(float(x[head]) for x in (before.first_mass, after.first_mass, before.angle, after.angle)),
            )
            for before, after in self._layers()
            for head in range(len(before.first_mass))
        ]
        return sorted(heads, key=lambda head: -abs(head.mass_after - head.mass_before))[:n]

    @plain_torch()
    def summary(self) -> list[dict[str, Any]]:
        """One row per layer: after minus before of what `AttentionSinks.summary` gives."""
        both = zip(self.before.summary(), self.after.summary(), strict=True)
        return [
            {"layer": b["layer"], **{key: a[key] - b[key] for key in b if key != "layer"}} for b, a in both
        ]

    @plain_torch()
    def to_dict(self) -> dict[str, Any]:
        """Differences as JSON-ready lists, per layer and head, and the largest."""
        differences = {name: self.difference(name) for name in (*MEASURES, "sink_rate")}
        layers = [
            {"layer": layer.layer, **{name: values[i] for name, values in differences.items()}}
            for i, layer in enumerate(self.before.layers)
        ]
        return jsonable({"layers": layers, "largest": [head._asdict() for head in self.largest()]})


def relative(before: Tensor, after: Tensor) -> Tensor:
    """(after - before) / before; zero where both are equal, infinite where something came from nothing."""
    return torch.where(before == after, 0.0, after / before - 1)


@plain_torch()
def compare(before: Any, after: Any) -> SpectrumChange | SinkChange:
    """Compare two measurements of one model on the same prompts.

    Args:
        before: a `RopeSpectrum` or `AttentionSinks`.
        after: the same kind, of the same prompts and settings.

    Returns:
        A `SpectrumChange` or `SinkChange`.

    Raises:
        TypeError: they are not of one of these kinds.
        ValueError: they differ in prompts, settings or layers.
    """
    if isinstance(before, RopeSpectrum) and isinstance(after, RopeSpectrum):
        _check_comparable(before, after, ("prompts", "tokens", "context"))
        return SpectrumChange(before, after)
    if isinstance(before, AttentionSinks) and isinstance(after, AttentionSinks):
        _check_comparable(before, after, ("prompts", "tokens", "long_prompts", "epsilon", "window"))
        return SinkChange(before, after)
    raise TypeError(
        f"Two RopeSpectrum or two AttentionSinks can be compared, got {type(before).__name__} and "
        f"{type(after).__name__}."
    )


def _check_comparable(before: Any, after: Any, settings: tuple[str, ...]) -> None:
    differing = [name for name in settings if getattr(before, name) != getattr(after, name)]
    shapes = [
        [
            (layer.layer, *(tuple(x.shape) for x in vars(layer).values() if isinstance(x, Tensor)))
            for layer in r.layers
        ]
        for r in (before, after)
    ]
    if shapes[0] != shapes[1]:
        differing.append("layers")
    if differing:
        raise ValueError(
            f"The two measurements differ in {', '.join(differing)}. Measure the same model on the same prompts "
            "with the same settings."
        )
