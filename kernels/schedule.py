"""The work list of `squared_gradient_`: which rows a program multiplies, and where a segment ends.

Made of operations on tensors alone, on the device where the segments are, so that nothing waits for them. Segments that
the host knows are cut there, and the tables kept for the next call, because all layers of one batch share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from .launch import capturing, sent

Bounds = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Schedule:
    """Device tables, int32.

    Attributes:
        blocks: `[at most, 2]`, rows of (first row, number of rows), the number negative at a segment's last block;
            zero after the last block, because the kernel reads one ahead.
        spans: `[slices * splits, 3]`, rows of (output slice, first block, last-plus-one block). Without splits
            the slice is F's, else the workspace's. A span may be empty.
        splits: spans per slice of F.
    """

    blocks: Tensor
    spans: Tensor
    splits: int


_captured: list[Schedule] = []  # what CUDA graphs read; they may be replayed as long as the process lives


def build(
    F: Tensor,
    rows: int,
    bounds: Bounds | Tensor,
    targets: Sequence[int] | Tensor | None,
    block_tokens: int,
    splits: int,
) -> Schedule:
    """Cut segments into token blocks, sorted by the slice of F they add to.

    Args:
        F: `[d_out, d_in]`, or `[E, d_out, d_in]`; says where the tables go. The current stream shall read them; they
            are not shared between streams, whose order is unknown. What a CUDA graph reads is kept for good.
        rows: of the operands.
        bounds: first and last-plus-one row of each segment, which do not overlap; at least one segment. An integer
            tensor `[S, 2]` has to be on F's device.
        targets: slice of F of each segment, a tensor where bounds are one; None where there is only slice 0.
        block_tokens: rows per block at most.
        splits: into how many spans the segments of one slice are divided, in order and by number of blocks.

    Returns:
        The tables.

    Raises:
        RuntimeError: a CUDA graph is being captured, the bounds are no tensor, and the same call was not made on this
            stream before.
    """
    slices = F.shape[0] if F.ndim == 3 else 1
    if isinstance(bounds, Tensor):
        assert targets is None or isinstance(targets, Tensor)
        return tables(bounds, targets, slices, rows, block_tokens, splits)
    stream = torch.cuda.current_stream().cuda_stream if F.is_cuda else 0
    chosen = None if targets is None else tuple(targets)
    schedule = _sent(tuple(bounds), chosen, slices, rows, block_tokens, splits, F.device, stream)
    if capturing():
        _captured.append(schedule)
    return schedule


@lru_cache(maxsize=64)
def _sent(
    bounds: tuple[tuple[int, int], ...],
    targets: tuple[int, ...] | None,
    slices: int,
    rows: int,
    block_tokens: int,
    splits: int,
    device: torch.device,
    stream: int,
) -> Schedule:
    edges = torch.from_numpy(np.fromiter(chain.from_iterable(bounds), np.int64, 2 * len(bounds)))
    chosen = None if targets is None else torch.from_numpy(np.fromiter(targets, np.int64, len(targets)))
    here = tables(edges.view(-1, 2), chosen, slices, rows, block_tokens, splits)
    return Schedule(sent(here.blocks.numpy(), device), sent(here.spans.numpy(), device), splits)


def tables(
    bounds: Tensor, targets: Tensor | None, slices: int, rows: int, block_tokens: int, splits: int
) -> Schedule:
    """The tables of `build`, where `bounds` and `targets` are. Their sizes follow from the arguments' shapes alone."""
    starts, sizes = bounds[:, 0], bounds[:, 1] - bounds[:, 0]
    if targets is not None:
        targets, order = targets.sort(stable=True)
        starts, sizes = starts.take(order), sizes.take(order)
    # of each segment the first block, and behind the last segment the number of blocks
    edges = pad(((sizes + (block_tokens - 1)) // block_tokens).cumsum(0), (1, 0))
    return Schedule(
        _blocks(starts, sizes, edges, rows // block_tokens + len(bounds) + 1, block_tokens),
        _spans(targets, edges, slices, splits),
        splits,
    )


def _blocks(starts: Tensor, sizes: Tensor, edges: Tensor, most: int, block_tokens: int) -> Tensor:
    block = torch.arange(most, device=edges.device)
    segment = torch.searchsorted(edges[1:], block, right=True).clamp_(max=len(sizes) - 1)
    before = (block - edges.take(segment)) * block_tokens  # rows of the segment in earlier blocks
    left = sizes.take(segment) - before
    count = torch.where(left > block_tokens, block_tokens, -left.clamp(min=0))
    return torch.stack([(starts.take(segment) + before) * (left > 0), count], 1).int()


def _spans(targets: Tensor | None, edges: Tensor, slices: int, splits: int) -> Tensor:
    if targets is None:
        cuts = edges[:: len(edges) - 1]
    else:
        cuts = edges.take(torch.searchsorted(targets, torch.arange(slices + 1, device=edges.device)))
    parts = torch.arange(splits + 1, device=edges.device)
    ideal = cuts[:-1, None] + (cuts[1:] - cuts[:-1])[:, None] * parts // splits
    ends = edges.take(torch.searchsorted(edges, ideal))  # a span ends where a segment ends
    slots = torch.arange(slices * splits, device=edges.device).view(slices, splits)
    return torch.stack([slots, ends[:, :-1], ends[:, 1:]], 2).view(-1, 3).int()
