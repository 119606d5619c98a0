"""The work list of `squared_gradient_`: which rows a program multiplies, and where a segment ends.

Built on the host from the segments' bounds and kept for the next call, because all layers of one batch share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .launch import capturing, sent

Bounds = tuple[tuple[int, int], ...]

_MAX_ROWS = 2**31 - 1


@dataclass(frozen=True)
class Schedule:
    """Device tables, int32.

    Attributes:
        blocks: `[blocks + 1, 2]`, rows of (first row, number of rows), the number negative at a segment's last
            block; the row after the last one is zero, because the kernel reads one ahead.
        spans: `[groups * splits, 3]`, rows of (output slice, first block, last-plus-one block). Without splits
            the slice is F's, else the workspace's.
        slices: `[groups]`, the slice of F that each group of spans belongs to.
        splits: spans per group.
    """

    blocks: Tensor
    spans: Tensor
    slices: Tensor
    splits: int


_captured: list[Schedule] = []  # what CUDA graphs read; they may be replayed as long as the process lives


def build(
    bounds: Bounds,
    targets: tuple[int, ...] | None,
    block_tokens: int,
    splits: int,
    device: torch.device,
    stream: int,
) -> Schedule:
    """Cut segments into token blocks, sorted by the slice of F they add to.

    Args:
        bounds: first and last-plus-one row of each segment; at least one of them not empty.
        targets: slice of F of each segment; None where there is only slice 0.
        block_tokens: rows per block at most.
        splits: into how many spans the segments of one slice are divided, in order and by number of blocks.
        device: where the tables go.
        stream: the stream that will read them; tables are not shared between streams, whose order is unknown. What
            a CUDA graph reads is kept for good.

    Returns:
        The tables.

    Raises:
        RuntimeError: a CUDA graph is being captured, and the same call was not made on this stream before.
    """
    schedule = _build(bounds, targets, block_tokens, splits, device, stream)
    if capturing():
        _captured.append(schedule)
    return schedule


@lru_cache(maxsize=64)
def _build(
    bounds: Bounds,
    targets: tuple[int, ...] | None,
    block_tokens: int,
    splits: int,
    device: torch.device,
    stream: int,
) -> Schedule:
    blocks, spans, slices = (sent(table, device) for table in tables(bounds, targets, block_tokens, splits))
    return Schedule(blocks, spans, slices, splits)


def tables(
    bounds: Bounds, targets: tuple[int, ...] | None, block_tokens: int, splits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tables of `build`, as int32 arrays on the host."""
    edges = np.asarray(bounds, dtype=np.int64).reshape(-1, 2)
    if edges.max(initial=0) > _MAX_ROWS:
        raise ValueError(
            f"squared_gradient_ takes at most {_MAX_ROWS} rows in one call, got {edges.max()}. Split the batch."
        )
    chosen = np.zeros(len(edges), np.int64) if targets is None else np.asarray(targets, dtype=np.int64)
    live = edges[:, 0] < edges[:, 1]
    order = np.argsort(chosen[live], kind="stable")
    edges, chosen = edges[live][order], chosen[live][order]
    counts = -(-(edges[:, 1] - edges[:, 0]) // block_tokens)
    return _blocks(edges, counts, block_tokens), *_spans(chosen, counts, splits)


def _blocks(edges: np.ndarray, counts: np.ndarray, block_tokens: int) -> np.ndarray:
    ends = np.cumsum(counts)
    segment = np.repeat(np.arange(len(edges)), counts)
    within = np.arange(ends[-1]) - (ends - counts)[segment]
    table = np.zeros((ends[-1] + 1, 2), np.int32)
    table[:-1, 0] = edges[segment, 0] + within * block_tokens
    table[:-1, 1] = np.minimum(edges[segment, 1] - table[:-1, 0], block_tokens)
    table[ends - 1, 1] *= -1
    return table


def _spans(chosen: np.ndarray, counts: np.ndarray, splits: int) -> tuple[np.ndarray, np.ndarray]:
    ends = np.cumsum(counts)
    slices, first = np.unique(chosen, return_index=True)
    last = np.append(first[1:], len(chosen)) - 1
    begin, end = ends[first] - counts[first], ends[last]
    spans = np.zeros((len(slices), splits, 3), np.int32)
    spans[:, :, 0] = slices[:, None] if splits == 1 else np.arange(len(slices) * splits).reshape(-1, splits)
    spans[:, 0, 1], spans[:, -1, 2] = begin, end
    for group in range(len(slices) if splits > 1 else 0):
        ideal = begin[group] + (end[group] - begin[group]) * np.arange(1, splits) // splits
        inner = np.append(begin[group], ends[first[group] : last[group] + 1])
        cuts = inner[np.searchsorted(inner, ideal)]  # a span ends where a segment ends
        spans[group, 1:, 1] = spans[group, :-1, 2] = cuts
    return spans.reshape(-1, 3), slices.astype(np.int32)
