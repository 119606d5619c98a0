"""Launchers of `topk` and `topk_across`: which road each group of vectors takes, and the final order.

A group is what one selection is taken over: one vector for `topk`, all of them for `topk_across`. Positions
count through all vectors one after another, so that their order is the order of ties.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from . import topk_filter, topk_radix
from .launch import on_device

_SMALL = 1 << 16  # up to here every entry is a candidate
_STRATUM = 1024  # entries per sampled one, as far as the limits below allow
_SAMPLE = (1 << 12, 1 << 17)
_SCRATCH = 1 << 29  # bytes for the groups worked on at a time, counted as below
_PER_CANDIDATE = 96  # bytes: buffer, and keys, indices and workspace of the final sorts
_PER_SAMPLED = 32  # bytes: sample, and copies of the library's selection
_ALIGN = 16  # candidates of a group start at a multiple of this, so that addresses stay aligned


@dataclass(frozen=True)
class _Group:
    """One selection: its vectors, how many to select, and the plan for the filter pass.

    Attributes:
        members: which of the vectors.
        k: how many to select.
        sizes: entries to sample from each member; empty where no sample is needed.
        rank: which sampled entry, from the top, is the bound.
        capacity: room for candidates; None sends the group to the radix road at once.
    """

    members: range
    k: int
    sizes: tuple[int, ...]
    rank: int
    capacity: int | None

    @property
    def scratch(self) -> int:
        """Bytes of memory needed on the way, at most."""
        if self.capacity is None:
            return _PER_CANDIDATE * self.k
        # all rows of samples are as long as the longest
        return _PER_CANDIDATE * self.capacity + (_PER_SAMPLED * _SAMPLE[1] if self.sizes else 0)


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
    first = torch.tensor(starts, device=found.device)
    owners = torch.searchsorted(first[1:], found, right=True)
    return owners, found - first[owners], status


def _starts(flats: Sequence[Tensor]) -> list[int]:
    """Where each vector begins in their concatenation, and its end."""
    return list(accumulate((flat.numel() for flat in flats), initial=0))


def _plan(members: range, flats: Sequence[Tensor], k: int) -> _Group:
    """Choose sample size, rank of the bound and room for candidates.

    λ of the group's k largest are expected in the sample. Its r-th largest entry with r = λ + 4√λ + 4 lies
    below the k-th largest of all but with a probability of about 1e-5, and the candidates above it fit into
    (r + 6√r + 16) strata with about the same certainty. What does not is found out and done by radix.
    """
    numel = sum(flats[i].numel() for i in members)
    if k == 0:
        return _Group(members, k, (), 0, 0)
    if numel <= _SMALL:
        return _Group(members, k, (), 0, numel)
    total = min(max(numel // _STRATUM, _SAMPLE[0]), _SAMPLE[1])
    # each vector's share as a difference of rounded sums, so that shares below one entry are not all lost
    ends = accumulate((flats[i].numel() for i in members), initial=0)
    sizes = tuple(after - before for before, after in pairwise(end * total // numel for end in ends))
    expected = k * total / numel
    rank = math.ceil(expected + 4 * math.sqrt(expected) + 4)
    capacity = math.ceil((rank + 6 * math.sqrt(rank) + 16) * numel / total)
    return _Group(members, k, sizes, rank, capacity if capacity <= numel // 8 else None)


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
    room = [-(-(group.capacity or 0) // _ALIGN) * _ALIGN for group in groups]
    count = status.new_zeros(len(groups))
    positions = status.new_empty(sum(room)).split(room)
    values = flats[0].new_empty(sum(room)).split(room)
    bounds = _bounds(flats, groups)
    for g, group in enumerate(groups):
        if group.capacity is None:
            continue
        for i in group.members:
            topk_filter.keep_from(
                flats[i],
                starts[i],
                bounds[g],
                count[g],
                status[i],
                positions[g][: group.capacity],
                values[g],
            )
    seen = status[groups[0].members.start : groups[-1].members.stop]
    *kept, lowest = torch.cat((count, seen.amin(0, keepdim=True))).tolist()
    if lowest != topk_filter.NONE:
        return [status.new_zeros(group.k) for group in groups]
    candidates = []
    for g, (group, have) in enumerate(zip(groups, kept, strict=True)):
        if group.capacity is not None and group.k <= have <= group.capacity:
            candidates.append((positions[g][:have], values[g][:have]))
        else:
            candidates.append(_by_radix(flats, starts, group, status))
    return _in_order(candidates, [group.k for group in groups])


def _bounds(flats: Sequence[Tensor], groups: Sequence[_Group]) -> Tensor:
    """A lower bound of each group's k-th largest value that hardly anything but the k largest reaches."""
    bounds = flats[0].new_tensor([-math.inf if group.k else math.inf for group in groups])
    sampled = [g for g, group in enumerate(groups) if group.sizes and group.capacity is not None]
    if not sampled:
        return bounds
    width = max(sum(groups[g].sizes) for g in sampled)
    drawn = flats[0].new_full((len(sampled), width), -math.inf)
    for row, g in zip(drawn, sampled, strict=True):
        parts = row[: sum(groups[g].sizes)].split(groups[g].sizes)
        for i, part in zip(groups[g].members, parts, strict=True):
            topk_filter.sample(flats[i], part)
    ranks = torch.tensor([groups[g].rank for g in sampled], device=bounds.device)
    largest = torch.topk(drawn, max(groups[g].rank for g in sampled), dim=1).values
    bounds[torch.tensor(sampled, device=bounds.device)] = largest.gather(1, ranks[:, None] - 1).squeeze(1)
    return bounds


def _by_radix(
    flats: Sequence[Tensor], starts: Sequence[int], group: _Group, status: Tensor
) -> topk_radix.Selected:
    members = list(group.members)
    return topk_radix.select(
        [flats[i] for i in members], [starts[i] for i in members], group.k, [status[i] for i in members]
    )


def _in_order(candidates: Sequence[tuple[Tensor, Tensor]], counts: Sequence[int]) -> list[Tensor]:
    """The first k positions of every group's candidates by (value descending, position ascending)."""
    sizes = [len(positions) for positions, _ in candidates]
    positions, order = torch.sort(torch.cat([positions for positions, _ in candidates]))
    values = torch.cat([values for _, values in candidates])[order]
    # the sort may look at bits: -0.0 becomes 0.0
    order = torch.sort(values + 0.0, descending=True, stable=True).indices
    positions = positions[order]
    if len(sizes) > 1:
        counted = torch.tensor(sizes, device=positions.device)
        origin = torch.repeat_interleave(counted, output_size=sum(sizes))
        positions = positions[torch.sort(origin[order], stable=True).indices]
    return [part[:k].clone() for part, k in zip(positions.split(sizes), counts, strict=True)]
