"""`rank`: the top entries, selected and ordered once; the mask of any smaller κ is then a prefix."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tomfisher.masks.entries import Entries, entries_of, stored
from tomfisher.masks.fraction import checked_kappa, count, smallest_kappa
from tomfisher.masks.sparse_mask import SparseMask
from tomfisher.ops import Summary
from tomfisher.progress import progress_bar
from tomfisher.runtime.structure import layer_index, layer_pattern
from tomfisher.runtime.torch_state import plain_torch

Scope = Literal["tensor", "layer", "model"]
_SCOPES = ("tensor", "layer", "model")


class TopList(NamedTuple):
    """Top entries above zero of one group of tensors: value descending, then tensor order, then flat index ascending.

    Attributes:
        names: the group's tensors, in the order of the mapping.
        numel: number of entries of all of them.
        owner: `[k]` int64, which of `names` an entry lies in.
        positions: `[k]` int64, its flat row-major position there.
        values: `[k]` float64.
    """

    names: tuple[str, ...]
    numel: int
    owner: Tensor
    positions: Tensor
    values: Tensor


@dataclass(frozen=True)
class Ranking:
    """Ordered top lists at the largest κ, from which the mask of every smaller κ is read off.

    Attributes:
        lists: one list per tensor, layer or model.
        shapes: shape of every tensor.
        kappa: the largest κ.
        scope: "tensor", "layer" or "model".
        compat: None, or "authors" for the paper's thresholding.
        source: what the values were, for the mask's provenance.
        summaries: what the entries of every tensor are like (`tomfisher.ops.Summary`), taken in the same pass;
            empty unless `rank` was given thresholds.
    """

    lists: tuple[TopList, ...]
    shapes: dict[str, tuple[int, ...]]
    kappa: float
    scope: Scope
    compat: str | None = None
    source: dict[str, Any] = field(default_factory=dict)
    summaries: dict[str, Summary] = field(default_factory=dict)

    @plain_torch()
    def mask(self, kappa: float) -> SparseMask:
        """The mask at `kappa`: the first k of every list, without selecting again.

        Tensors too small to get an entry at this κ are named in one warning. Those with fewer entries above zero
        than κ asks for give these.

        Args:
            kappa: greater than 0, at most the ranking's κ.

        Returns:
            The same mask as `top_fraction` at this κ.

        Raises:
            ValueError: κ is not in (0, 1) or larger than the ranking's.
        """
        kappa = self._checked(kappa)
        chosen: dict[str, Tensor] = {}
        missed: list[TopList] = []
        for top in self.lists:
            k = self._length(top, kappa)
            chosen.update(_split(top, k))
            if k == 0 and top.numel and not _is_short(top, kappa, self.compat):
                missed.append(top)
        if missed:
            warnings.warn(_missed(missed, kappa, self.compat), stacklevel=2)
        indices = {name: chosen[name] for name in self.shapes}
        step = {"operation": "top_fraction", "kappa": kappa, "scope": self.scope, "compat": self.compat}
        return SparseMask(indices, self.shapes, kappa, self.scope, [{**step, **self.source}])

    @plain_torch()
    def thresholds(self, kappa: float) -> list[float | None]:
        """The smallest value that `mask(kappa)` selects from each of `lists`; None where it selects nothing.

        Args:
            kappa: greater than 0, at most the ranking's κ.

        Raises:
            ValueError: κ is not in (0, 1) or larger than the ranking's.
        """
        kappa = self._checked(kappa)
        lengths = [self._length(top, kappa) for top in self.lists]
        return [float(top.values[k - 1]) if k else None for top, k in zip(self.lists, lengths, strict=True)]

    def _checked(self, kappa: float) -> float:
        kappa = checked_kappa(kappa)
        if kappa > self.kappa:
            raise ValueError(
                f"kappa must be at most {self.kappa:g}, what this ranking was taken at, got {kappa:g}. "
                "Rank again at the largest kappa of the sweep."
            )
        return kappa

    def _length(self, top: TopList, kappa: float) -> int:
        k = _count(kappa, top.numel, self.compat)
        if self.compat is None or k == 0 or _is_short(top, kappa, self.compat):
            return min(k, len(top.values))
        return int((top.values[:k] > top.values[k - 1]).sum())


@plain_torch()
def rank(
    F: Mapping[str, Tensor],
    kappa: float,
    scope: Scope = "tensor",
    compat: str | None = None,
    thresholds: Sequence[float] | None = None,
) -> Ranking:
    """Order the top entries of F once, for a sweep over κ.

    A group is one tensor (`scope="tensor"`), the tensors with one layer number in their names, as in
    "model.layers.12.", those without any being one more group ("layer"), or all ("model"). Of each the
    k = floor(κ·numel) largest entries are kept, numel being the group's: larger value first, then the earlier
    tensor of F, then the lower flat index. An entry that is not above zero is never kept: no sample reached that
    weight. A group with fewer entries above zero than k has a shorter list, and one warning says where.
    Only one tensor of F is held at a time, and of a Fisher store opened from disk only a block of one.

    Args:
        F: any mapping from names to tensors of float16, bfloat16, float32 or float64 values.
        kappa: the largest κ of the sweep, in (0, 1).
        scope: where the top-k is taken.
        compat: "authors" for the paper's rule: of k = int(numel·κ) entries only those strictly above the k-th
            largest value stay (k - 1 without ties); `scope="tensor"` only.
        thresholds: numbers to count every tensor's entries above; with any, or with none of them (`()`), the pass
            also gives `Ranking.summaries`. None leaves these out: counting takes longer than selecting.

    Returns:
        The ranking; `Ranking.mask(kappa)` costs a copy of the prefix.

    Raises:
        TypeError: a tensor has no floating-point dtype.
        ValueError: κ, scope or compat is unknown, F is empty, a threshold is NaN, or a tensor holds NaN or
            infinity.
    """
    kappa = checked_kappa(kappa)
    if scope not in _SCOPES:
        raise ValueError(f"scope must be one of {', '.join(_SCOPES)}, got {scope!r}.")
    if compat not in (None, "authors"):
        raise ValueError(f"compat must be None or 'authors', got {compat!r}.")
    if compat == "authors" and scope != "tensor":
        raise ValueError(f"compat='authors' selects per tensor, got scope={scope!r}. Use scope='tensor'.")
    if not len(F):
        raise ValueError("F holds no tensor: nothing to select from.")
    reader = _Reader(F, thresholds)
    groups = [(name,) for name in F] if scope == "tensor" else list(_groups(F, scope))
    lists = []
    for names in progress_bar(groups, desc="Ranking", unit=scope, enabled=stored(F)):
        if scope == "tensor":
            lists.append(_tensor_list(reader, names[0], kappa, compat))
        else:
            lists.append(_group_list(reader, names, kappa))
    shapes = {name: reader.shapes[name] for name in F}
    summaries = {name: reader.summaries[name] for name in F if name in reader.summaries}
    if short := [top for top in lists if _is_short(top, kappa, compat)]:
        warnings.warn(_short(short, len(lists), kappa, compat), stacklevel=2)
    return Ranking(tuple(lists), shapes, kappa, scope, compat, _source(F), summaries)


class _Reader:
    """Takes the largest entries above zero of one tensor after another, and notes what each tensor is like.

    Args:
        F: the tensors.
        thresholds: of the summaries; None takes none.
    """

    def __init__(self, F: Mapping[str, Tensor], thresholds: Sequence[float] | None) -> None:
        self.F = F
        self.thresholds = thresholds
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.summaries: dict[str, Summary] = {}

    def entries(self, name: str) -> Entries:
        entries = entries_of(self.F, name)
        self.shapes[name] = entries.shape
        return entries

    def largest(self, entries: Entries, k: int) -> tuple[Tensor, Tensor]:
        """Values and positions, without the end of the list that no sample reached."""
        values, positions, counted = entries.largest(k, self.thresholds)
        if counted is not None:
            self.summaries[entries.name] = counted
        k = int((values > 0).sum())
        return values[:k], positions[:k]


def _count(kappa: float, numel: int, compat: str | None) -> int:
    return count(kappa, numel) if compat is None else int(numel * kappa)


def _tensor_list(reader: _Reader, name: str, kappa: float, compat: str | None) -> TopList:
    entries = reader.entries(name)
    top, index = reader.largest(entries, _count(kappa, entries.numel, compat))
    return TopList((name,), entries.numel, torch.zeros_like(index), index, top)


def _group_list(reader: _Reader, names: tuple[str, ...], kappa: float) -> TopList:
    numel = sum(reader.entries(name).numel for name in names)
    k = count(kappa, numel)
    best = torch.empty(0, dtype=torch.float64)
    owner = index = torch.empty(0, dtype=torch.int64)
    for position, name in enumerate(names):
        entries = reader.entries(name)
        top, where = reader.largest(entries, min(k, entries.numel))
        if 0 < k == len(best):  # an entry no larger than the k-th so far comes after it
            larger = top > best[-1]
            top, where = top[larger], where[larger]
        best = torch.cat([best, top])
        order = torch.sort(best, descending=True, stable=True).indices[:k]
        best = best[order]
        owner = torch.cat([owner, torch.full_like(where, position)])[order]
        index = torch.cat([index, where])[order]
    return TopList(names, numel, owner, index, best)


def _is_short(top: TopList, kappa: float, compat: str | None) -> bool:
    """Whether κ asks for more entries than are above zero."""
    return _count(kappa, top.numel, compat) > len(top.values)


def _groups(F: Mapping[str, Tensor], scope: Scope) -> Iterator[tuple[str, ...]]:
    groups: dict[int | None, list[str]] = {}
    for name in F:
        groups.setdefault(layer_index(name) if scope == "layer" else None, []).append(name)
    yield from map(tuple, groups.values())


def _split(top: TopList, k: int) -> dict[str, Tensor]:
    """The first k entries of a list, per tensor and sorted."""
    owner, positions = top.owner[:k], top.positions[:k]
    parts = positions[torch.argsort(owner, stable=True)].split(
        torch.bincount(owner, minlength=len(top.names)).tolist()
    )
    return {name: part.sort().values for name, part in zip(top.names, parts, strict=True)}


def _short(short: list[TopList], groups: int, kappa: float, compat: str | None) -> str:
    kinds = _kinds(f"{_name(top)} ({len(top.values)} of {_count(kappa, top.numel, compat)})" for top in short)
    listed = "; ".join(kinds[:4]) + (f"; and {len(kinds) - 4} more kinds" if len(kinds) > 4 else "")
    return (
        f"In {len(short)} of {groups} tensors or groups fewer entries are above zero than kappa={kappa:g} asks for; no "
        f"sample reached the others, so these give what they have: {listed}."
    )


def _missed(missed: list[TopList], kappa: float, compat: str | None) -> str:
    needed = 1 if compat is None else 2
    kinds = _kinds(
        f"{_name(top)} ({top.numel} entries, needs kappa >= {smallest_kappa(top.numel, needed):g})"
        for top in missed
    )
    return f"kappa={kappa:g} selects no entry in {len(missed)} of the tensors or groups: {'; '.join(kinds)}."


def _name(top: TopList) -> str:
    return layer_pattern(top.names[0]) if len(top.names) == 1 else f"{top.names[0]} and its group"


def _kinds(mentions: Iterable[str]) -> list[str]:
    """Each mention once, with how often it occurs, the commonest first: layers of one kind share theirs."""
    return [f"{n} x {what}" if n > 1 else what for what, n in Counter(mentions).most_common()]


def _source(F: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a Fisher says about itself, where F is one."""
    facts = {key: getattr(F, key, None) for key in ("definition", "num_samples")}
    return {key: value for key, value in facts.items() if isinstance(value, (dict, int))}
