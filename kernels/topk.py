"""Launchers of `topk` and `topk_across`: which path each group of vectors takes, and the final order.

A group is what one selection is taken over: one vector for `topk`, all of them for `topk_across`. Positions
count through all vectors one after another, so that their order is the order of ties.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from . import topk_filter
from .launch import on_device, sent
from .topk_bracket import Bracket, threshold

_SMALL = 1 << 16  # up to here every entry is a candidate
_STRATUM = 1024  # entries per sampled one, as far as the limits below allow
_SAMPLE = (1 << 12, 1 << 17)
_SCRATCH = 1 << 29  # bytes for the groups worked on at a time, counted as below
_PER_CANDIDATE = 96  # bytes: buffer, and keys, indices and workspace of the final sorts
_PER_BETWEEN = 24  # bytes: values between two pivots, and workspace of their sort
_PER_SAMPLED = 32  # bytes: sample, and copies of the library's selection
_ALIGN = 16  # candidates of a group start at a multiple of this, so that addresses stay aligned

_Candidates = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Group:
    """One selection: its vectors, how many to select, and the plan for the first pass.

    Attributes:
        members: which of the vectors.
        k: how many to select.
        sizes: entries to sample from each member; empty where no sample is needed.
        ranks: which sampled entries, from the top, lie about the k-th largest of all: above it, and below it. The
            first path takes the one below as its bound; rank 0, or one beyond the sample, is an infinity.
        capacity: room for what lies above the bound, or on the second path between the two.
        few: whether the first path is taken.
    """

    members: range
    k: int
    sizes: tuple[int, ...]
    ranks: tuple[int, int]
    capacity: int
    few: bool

    @property
    def scratch(self) -> int:
        """Bytes of memory needed on the way, at most."""
        needed = _PER_CANDIDATE * self.capacity
        if not self.few:
            needed = _PER_CANDIDATE * self.k + _PER_BETWEEN * self.capacity
        # all rows of samples are as long as the longest
        return needed + (_PER_SAMPLED * _SAMPLE[1] if self.sizes else 0)


def topk(flats: Sequence[Tensor], counts: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Positions of the k largest entries of each vector, by value descending, then position ascending.

    Args:
        flats: contiguous vectors of one dtype on one device; float16, bfloat16, float32 or float64.
        counts: k of each.

    Returns:
        An int64 vector of length k for each, and the int64 status of each: -1 or the first position that is
        not finite, in which case its indices mean nothing.
    """
    starts = _starts(flats)
    groups = [_plan(range(i, i + 1), flats, k) for i, k in enumerate(counts)]
    found, status = _select(flats, starts, groups)
    return [positions - start for positions, start in zip(found, starts, strict=False)], status


def topk_across(flats: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest entries of all vectors together: value descending, then vector, then position.

    Args:
        flats: contiguous vectors of one dtype on one device.
        k: at most the number of all entries.

    Returns:
        Which vector each entry lies in and its position there, int64 `[k]` both, and the status of each vector
        as for `topk`.
    """
    starts = _starts(flats)
    (found,), status = _select(flats, starts, [_plan(range(len(flats)), flats, k)])
    first = sent(np.array(starts), found.device)
    owners = torch.searchsorted(first[1:], found, right=True)
    return owners, found - first[owners], status


def _starts(flats: Sequence[Tensor]) -> list[int]:
    """Where each vector begins in their concatenation, and its end."""
    return list(accumulate((flat.numel() for flat in flats), initial=0))


def _plan(members: range, flats: Sequence[Tensor], k: int) -> _Group:
    """Choose sample size, ranks and room for candidates.

    λ of the group's k largest are expected in the sample. Its r-th largest entry with r = λ + 4√λ + 4 lies
    below the k-th largest of all but with a probability of about 1e-5, and the entries above it fit into
    (r + 6√r + 16) strata with about the same certainty. What does not is found out and done by bracketing.
    """
    numel = sum(flats[i].numel() for i in members)
    if k == 0:
        return _Group(members, k, (), (0, 0), 0, few=True)
    if numel <= _SMALL:
        return _Group(members, k, (), (0, 1), numel, few=True)
    total = min(max(numel // _STRATUM, _SAMPLE[0]), _SAMPLE[1])
    # each vector's share as a difference of rounded sums, so that shares below one entry are not all lost
    ends = accumulate((flats[i].numel() for i in members), initial=0)
    sizes = tuple(after - before for before, after in pairwise(end * total // numel for end in ends))
    expected = k * total / numel
    margin = 4 * math.sqrt(expected) + 4
    above, below = max(0, math.floor(expected - margin)), math.ceil(expected + margin)
    capacity = _room(below, numel, total)
    if capacity <= numel // 8:
        return _Group(members, k, sizes, (above, below), capacity, few=True)
    return _Group(
        members, k, sizes, (above, below), min(_room(below - above, numel, total), numel), few=False
    )


def _room(rank: int, numel: int, total: int) -> int:
    """Room for the entries of all between which `rank` sampled ones lie."""
    return math.ceil((rank + 6 * math.sqrt(rank) + 16) * numel / total)


def _select(
    flats: Sequence[Tensor], starts: Sequence[int], groups: Sequence[_Group]
) -> tuple[list[Tensor], Tensor]:
    """Positions of every group's selection, in order, and the status of every vector."""
    with on_device(flats[0]):
        status = flats[0].new_full((len(flats),), topk_filter.NONE, dtype=torch.int64)
        found = [
            positions for part in _parts(groups) for positions in _select_part(flats, starts, part, status)
        ]
        return found, torch.where(status == topk_filter.NONE, -1, status)


def _parts(groups: Sequence[_Group]) -> Iterator[list[_Group]]:
    """Divide the groups, in order, into parts whose scratch memory stays within the limit."""
    part: list[_Group] = []
    used = 0
    for group in groups:
        if part and used + group.scratch > _SCRATCH:
            yield part
            part, used = [], 0
        part.append(group)
        used += group.scratch
    yield part


def _select_part(
    flats: Sequence[Tensor], starts: Sequence[int], groups: Sequence[_Group], status: Tensor
) -> list[Tensor]:
    """Positions of the selections of neighbouring groups, in order; lowers the status of their vectors."""
    above, below = _pivots(flats, groups)
    found = _first_path(flats, starts, groups, below, status)
    candidates: list[_Candidates] = []
    for g, group in enumerate(groups):
        have = None if found is None else found[g]
        if isinstance(have, Bracket):
            pivots = None if group.few else (float(below[g]), float(above[g]))
            have = _second_path(flats, starts, group, have, pivots, status)
        if have is None:  # an entry is not finite
            return [status.new_zeros(group.k) for group in groups]
        candidates.append(have)
    return _in_order(candidates, [group.k for group in groups])


def _pivots(flats: Sequence[Tensor], groups: Sequence[_Group]) -> tuple[Tensor, Tensor]:
    """The sampled entries of each group that `ranks` names, one vector for those above and one for those below."""
    device, dtype = flats[0].device, flats[0].dtype
    ends = [(math.inf, -math.inf if group.ranks[1] else math.inf) for group in groups]
    found = sent(np.array(ends), device).to(dtype)
    sampled = [g for g, group in enumerate(groups) if group.sizes]
    if sampled:
        width = max(sum(groups[g].sizes) for g in sampled)
        drawn = flats[0].new_full((len(sampled), width + 1), -math.inf)  # the last one is beyond every sample
        draws = [
            (flats[i], size, place)
            for row, g in enumerate(sampled)
            for i, size, place in zip(
                groups[g].members,
                groups[g].sizes,
                accumulate(groups[g].sizes, initial=row * (width + 1)),
                strict=False,
            )
        ]
        topk_filter.sample(draws, drawn.view(-1))
        ranks = np.array([groups[g].ranks for g in sampled])
        largest = torch.topk(drawn, min(int(ranks.max()), width + 1), dim=1).values
        places = sent(np.minimum(np.maximum(ranks - 1, 0), largest.shape[1] - 1), device)
        entries = torch.where(sent(ranks == 0, device), math.inf, largest.gather(1, places))
        found[sent(np.array(sampled), device)] = entries.to(dtype)
    return found[:, 0], found[:, 1].contiguous()


def _first_path(
    flats: Sequence[Tensor], starts: Sequence[int], groups: Sequence[_Group], bounds: Tensor, status: Tensor
) -> list[_Candidates | Bracket] | None:
    """What reaches each group's bound, or, where that is too little or too much, where its k-th largest lies.

    Groups that take the second path at once are left alone. None where an entry is not finite.
    """
    room = [-(-group.capacity // _ALIGN) * _ALIGN if group.few else 0 for group in groups]
    begins = list(accumulate(room, initial=0))
    places = [
        (begin, group.capacity if group.few else 0) for begin, group in zip(begins, groups, strict=False)
    ]
    blocks = topk_filter.cut(flats, starts, [group.members if group.few else range(0) for group in groups])
    kept = topk_filter.keep_above(blocks, bounds, places, status)
    seen = status[groups[0].members.start : groups[-1].members.stop]
    *counted, lowest = torch.cat((kept.counts, kept.tied(), seen.amin(0, keepdim=True))).tolist()
    if lowest != topk_filter.NONE:
        return None
    above, tied = counted[: len(groups)], counted[len(groups) :]
    enough = [
        group.few and have <= group.capacity and have + ties >= group.k
        for group, have, ties in zip(groups, above, tied, strict=True)
    ]
    wanted = [max(group.k - have, 0) * ok for group, have, ok in zip(groups, above, enough, strict=True)]
    if any(wanted):
        kept.add_ties(above, tied, wanted)
    return [
        kept.of(g, above[g] + wanted[g]) if enough[g] else _bracket(group, above[g], bounds[g])
        for g, group in enumerate(groups)
    ]


def _bracket(group: _Group, above: int, bound: Tensor) -> Bracket:
    """Where a group's k-th largest lies, of which `above` entries exceed the bound: too many, or too few."""
    if not group.few:
        return Bracket(-math.inf, math.inf)
    return Bracket(float(bound), math.inf) if above > group.capacity else Bracket(-math.inf, float(bound))


def _second_path(
    flats: Sequence[Tensor],
    starts: Sequence[int],
    group: _Group,
    bracket: Bracket,
    pivots: tuple[float, float] | None,
    status: Tensor,
) -> _Candidates | None:
    """The k largest of a group by its exact k-th largest value; None where an entry is not finite."""
    blocks = topk_filter.cut(flats, starts, [group.members])
    value = threshold(blocks, group.k, bracket, pivots, group.capacity, status)
    if value is None:
        return None
    bound = torch.tensor([value], dtype=blocks.dtype).to(status.device)
    kept = topk_filter.keep_above(blocks, bound, [(0, group.k)], status)
    above, tied = torch.cat((kept.counts, kept.tied())).tolist()
    kept.add_ties([above], [tied], [group.k - above])
    return kept.of(0, group.k)


def _in_order(candidates: Sequence[_Candidates], counts: Sequence[int]) -> list[Tensor]:
    """The first k positions of every group's candidates by (value descending, position ascending)."""
    sizes = [len(positions) for positions, _ in candidates]
    positions, order = torch.sort(torch.cat([positions for positions, _ in candidates]))
    values = torch.cat([values for _, values in candidates])[order]
    # the sort may look at bits: -0.0 becomes 0.0
    order = torch.sort(values + 0.0, descending=True, stable=True).indices
    positions = positions[order]
    if len(sizes) > 1:
        counted = sent(np.array(sizes), positions.device)
        origin = torch.repeat_interleave(counted, output_size=sum(sizes))
        positions = positions[torch.sort(origin[order], stable=True).indices]
    return [part[:k].clone() for part, k in zip(positions.split(sizes), counts, strict=True)]
