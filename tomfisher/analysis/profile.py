"""Mask profile: where a mask's entries lie, in which frequencies, and how sparse and low-rank the change is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tomfisher.analysis.counts import GROUPS, PartCount, count_parts, short_name
from tomfisher.analysis.enrichment import Enrichment, enrichment
from tomfisher.analysis.jsonable import jsonable
from tomfisher.analysis.low_rank import RankChange, change_ranks
from tomfisher.analysis.rope import RopeSpectrum
from tomfisher.analysis.spread import Spread, spread
from tomfisher.masks import SparseMask
from tomfisher.models.families import Architecture, UnsupportedModel, describe
from tomfisher.perturbation.fill import FillLike
from tomfisher.perturbation.targets import named_tensors
from tomfisher.runtime.structure import is_conv1d
from tomfisher.runtime.torch_state import plain_torch

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Sparsity:
    """One matrix: how scattered its masked entries are and of which rank the change is, compared with a random mask.

    Attributes:
        layer: its number; None outside the layers.
        name: the weight's name.
        spread: rows and columns of the mask.
        random_spread: of one random mask with as many entries.
        change: singular values of ΔW; None where they were not asked for or cannot be had.
        random_change: the same for the random mask and the same fill.
        unranked: why singular values that were asked for cannot be had, of either mask.
    """

    layer: int | None
    name: str
    spread: Spread
    random_spread: Spread
    change: RankChange | None = None
    random_change: RankChange | None = None
    unranked: str | None = None

    @plain_torch()
    def to_dict(self) -> dict[str, Any]:
        """Everything, nested; the random mask under "random"."""
        both = [(self.spread, self.change), (self.random_spread, self.random_change)]
        mask, random = (
            s.to_dict() | {"change": None if change is None else change.to_dict()} for s, change in both
        )
        kept = {name: value for name, value in random.items() if name not in ("tensor", "masked")}
        why = {} if self.unranked is None else {"unranked": self.unranked}
        return {"layer": self.layer, **mask, **why, "random": kept}


@dataclass(frozen=True)
class MaskProfile:
    """What is known about the places of a mask's entries; made by `mask_profile`.

    A mask with scope "tensor" takes the same fraction of every tensor, so shares by layer and module then say only
    how much of it the control's mask has taken away; within a tensor every place had the same chance.

    Attributes:
        parts: counts, part by part.
        enrichment: tests of the rows of rotary frequencies; None where `unavailable` says why.
        matrices: rows, columns and ranks, matrix by matrix.
        seed: of the random mask that they are compared with.
        unavailable: "heads", "enrichment", "change": why it is missing; "change" also where only some matrices have
            none (their `unranked`).
    """

    parts: tuple[PartCount, ...]
    enrichment: Enrichment | None
    matrices: tuple[Sparsity, ...]
    seed: int
    unavailable: dict[str, str] = field(default_factory=dict)

    @property
    def nnz(self) -> int:
        """Masked entries."""
        return sum(part.masked for part in self.parts)

    @property
    def numel(self) -> int:
        """Entries of all tensors of the mask."""
        return sum(part.weights for part in self.parts)

    def by(self, key: Callable[[PartCount], Any]) -> dict[Any, tuple[int, int]]:
        """Masked entries and entries, summed over the parts with the same key, in order of appearance."""
        sums: dict[Any, tuple[int, int]] = {}
        for part in self.parts:
            masked, weights = sums.get(key(part), (0, 0))
            sums[key(part)] = (masked + part.masked, weights + part.weights)
        return sums

    def groups(self) -> Rows:
        """One row for each group that the mask has: q and k, v and o, MLP, mixer, other."""
        counts = self.by(lambda part: part.group)
        return [self._shares({"group": name}, counts[name]) for name in GROUPS if name in counts]

    def kinds(self) -> Rows:
        """One row per kind of weight."""
        counts = self.by(lambda part: (part.kind, part.group))
        return [self._shares({"kind": kind, "group": group}, n) for (kind, group), n in counts.items()]

    def layers(self) -> Rows:
        """One row per layer; None is what lies outside the layers."""
        counts = self.by(lambda part: part.layer)
        order = sorted(counts, key=lambda layer: (layer is None, layer or 0))
        return [self._shares({"layer": layer}, counts[layer]) for layer in order]

    def _shares(self, named: dict[str, Any], counts: tuple[int, int]) -> dict[str, Any]:
        """Share of the mask, share of the weights, and their ratio."""
        masked, weights = counts
        share = masked / self.nnz if self.nnz else math.nan
        expected = weights / self.numel
        return {
            **named,
            "masked": masked,
            "weights": weights,
            "share": share,
            "weight_share": expected,
            "fold": share / expected,
        }

    def sparsity(self) -> Rows:
        """One row per kind of matrix: means over its matrices, of the mask and of random masks of the same counts.

        Ranks are means over those that have them: "ranked" of them where they are not all.
        """
        by_kind: dict[str, list[Sparsity]] = {}
        for matrix in self.matrices:
            if matrix.spread.masked:
                by_kind.setdefault(short_name(matrix.name.partition("[")[0]), []).append(matrix)
        rows = [_sparsity_row(kind, matrices) for kind, matrices in by_kind.items()]
        if all(row["ranked"] == 0 for row in rows):
            left_out = ["ranked", "effective_rank", "effective_rank_random", "full_rank"]
        else:
            left_out = ["ranked"] if all(row["ranked"] == row["matrices"] for row in rows) else []
        return [{name: value for name, value in row.items() if name not in left_out} for row in rows]

    @plain_torch()
    def summary(self) -> dict[str, Rows]:
        """Tables by title: groups, kinds, layers, frequencies (where there are any), sparsity."""
        tables = {"groups": self.groups(), "kinds": self.kinds(), "layers": self.layers()}
        if self.enrichment is not None:
            tables["frequencies"] = self.enrichment.summary()
        return tables | {"sparsity": self.sparsity()}

    @plain_torch()
    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready: tables, parts, tests and matrices."""
        return jsonable(
            {
                "nnz": self.nnz,
                "numel": self.numel,
                "seed": self.seed,
                "groups": self.groups(),
                "kinds": self.kinds(),
                "layers": self.layers(),
                "sparsity": self.sparsity(),
                "parts": [part.to_dict() for part in self.parts],
                "enrichment": None if self.enrichment is None else self.enrichment.to_dict(),
                "matrices": [matrix.to_dict() for matrix in self.matrices],
                "unavailable": self.unavailable,
            }
        )


@plain_torch()
def mask_profile(
    mask: SparseMask,
    model: Any,
    spectrum: RopeSpectrum | None = None,
    fill: FillLike | None = "mean",
    seed: int = 0,
    compat: str | None = None,
    dominant_pairs: int = 1,
) -> MaskProfile:
    """Say where a mask's entries lie, whether they gather in rotary frequencies, and of which rank the change is.

    Args:
        mask: of this model.
        model: a causal language model of transformers, unperturbed; its weights are restored to the bit.
        spectrum: `rope_spectrum` of the untouched model, which says what pairs are dominant; None leaves the tests
            of frequencies out.
        fill: what the entries become (`tomfisher.perturb`), for the change ΔW; None leaves the ranks out.
        seed: of the random mask to compare with, and of the fill "noise".
        compat: see `tomfisher.perturb`.
        dominant_pairs: how many pairs of each head count as dominant.

    Returns:
        A `MaskProfile`. What the model does not have is in its `unavailable`, with the reason; counts by layer and
        module are there for any model.

    Raises:
        ValueError: mask or spectrum is of another model, or `dominant_pairs` is out of range.
    """
    _check_mask(mask, model)
    unavailable: dict[str, str] = {}
    architecture: Architecture | None = None
    try:
        architecture = describe(model)
        architecture.attending("head")
    except UnsupportedModel as error:
        unavailable["heads"] = str(error)
    parts = count_parts(mask, architecture)
    tests = _tests(parts, spectrum, dominant_pairs, architecture, unavailable)
    layers = {part.tensor: part.layer for part in parts}
    matrices = _matrices(mask, model, fill, seed, compat, layers)
    if fill is None:
        unavailable["change"] = "The ranks of the change were not asked for (fill=None)."
    elif without := [matrix for matrix in matrices if matrix.unranked]:
        unavailable["change"] = _without_ranks(without, len(matrices))
    return MaskProfile(tuple(parts), tests, tuple(matrices), seed, unavailable)


def _check_mask(mask: SparseMask, model: Any) -> None:
    have = {name: tuple(weight.shape) for name, weight in named_tensors(model).items()}
    wrong = [name for name in mask if have.get(name) != mask.shapes[name]]
    if wrong or not len(mask):
        what = f"{wrong[0]!r} is {have.get(wrong[0], 'missing')} there" if wrong else "it names no tensor"
        raise ValueError(f"The mask is of another model: {what}. Profile it with the model it was made of.")


def _tests(
    parts: list[PartCount],
    spectrum: RopeSpectrum | None,
    dominant_pairs: int,
    architecture: Architecture | None,
    unavailable: dict[str, str],
) -> Enrichment | None:
    if architecture is None:
        unavailable["enrichment"] = unavailable["heads"]
        return None
    try:
        architecture.rotating()
        if spectrum is not None:
            return enrichment(parts, spectrum, dominant_pairs)
        unavailable["enrichment"] = "No spectrum was given. Pass spectrum=rope_spectrum(model, prompts)."
    except UnsupportedModel as error:
        unavailable["enrichment"] = str(error)
    return None


def _matrices(
    mask: SparseMask,
    model: Any,
    fill: FillLike | None,
    seed: int,
    compat: str | None,
    layers: Mapping[str, int | None],
) -> list[Sparsity]:
    """Spread and change of each matrix, of the mask and of a random one."""
    transposed = frozenset(f"{name}.weight" for name, module in model.named_modules() if is_conv1d(module))
    random = mask.random_like(seed)
    spreads = [spread(m, transposed) for m in (mask, random)]
    changes: list[Sequence[RankChange | str | None]] = [
        [None] * len(spreads[0])
        if fill is None
        else change_ranks(model, which, fill, seed, compat, transposed)
        for which in (mask, random)
    ]
    matrices = []
    for own, other, *both in zip(*spreads, *changes, strict=True):
        reasons = [change for change in both if isinstance(change, str)]
        change, random_change = (
            None if reasons or not isinstance(change, RankChange) else change for change in both
        )
        layer = layers[own.tensor.partition("[")[0]]
        reason = reasons[0] if reasons else None
        matrices.append(Sparsity(layer, own.tensor, own, other, change, random_change, reason))
    return matrices


def _without_ranks(without: Sequence[Sparsity], of: int) -> str:
    """Which matrices have no ranks, and the reason of the first."""
    if len(without) == of:
        return str(without[0].unranked)
    return f"{len(without)} of {of} matrices have none; {without[0].name}: {without[0].unranked}"


def _sparsity_row(kind: str, matrices: list[Sparsity]) -> dict[str, Any]:
    def mean(value: Callable[[Sparsity], float]) -> float:
        return sum(map(value, matrices)) / len(matrices)

    ranked = [
        (m.change, m.random_change) for m in matrices if m.change is not None and m.random_change is not None
    ]
    n = len(ranked)
    return {
        "kind": kind,
        "matrices": len(matrices),
        "masked": mean(lambda m: m.spread.masked),
        "rows": mean(lambda m: m.spread.rows.distinct),
        "rows_expected": mean(lambda m: m.spread.rows.expected),
        "columns": mean(lambda m: m.spread.columns.distinct),
        "columns_expected": mean(lambda m: m.spread.columns.expected),
        "ranked": n,
        "effective_rank": sum(own.effective_rank for own, _ in ranked) / n if n else None,
        "effective_rank_random": sum(random.effective_rank for _, random in ranked) / n if n else None,
        "full_rank": sum(own.full for own, _ in ranked) / n if n else None,
    }
