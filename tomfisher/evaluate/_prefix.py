"""Computing the tokens that many sequences begin with only once.

The sequences form a tree of shared beginnings (a compressed trie). Every inner node is run once, batched with
other nodes of about the same length; its key-value cache then serves all its children. Nodes of one batch must
end at the same token, because a cache with padding inside would need mask and position tricks that architectures
understand differently: so a batch ends where its shortest node does, and the few tokens beyond are left to the
children. All of it is exact, up to rounding.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tomfisher.evaluate._forward import accepts, cache_argument, pad

# Fixed cost of one more forward, in tokens: what reading the weights and starting the kernels takes.
FORWARD_COST = 32


@dataclass(frozen=True)
class Row:
    """One sequence to run; outputs are needed from position `first` on."""

    ids: tuple[int, ...]
    first: int


@dataclass
class Node:
    """Rows that share their first `end` tokens."""

    end: int
    rows: list[int]
    children: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """Rows run to their end, behind a cache of `past` tokens; `parents[i]` is the cache row that row i follows."""

    rows: tuple[int, ...]
    past: int
    parents: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """Nodes run together: tokens `[past:end]` of each node's first row, and what follows behind them."""

    nodes: tuple[int, ...]
    past: int
    end: int
    parents: tuple[int, ...]
    then: tuple[Step | Batch, ...]


def plan_plain(rows: Sequence[Row], batch_size: int) -> tuple[Batch, ...]:
    """Whole rows in batches of similar length, longest first."""
    order = sorted(range(len(rows)), key=lambda r: (-len(rows[r].ids), r))
    chunks = (tuple(order[i : i + batch_size]) for i in range(0, len(order), batch_size))
    return tuple(Batch(chunk, 0, ()) for chunk in chunks)


def plan_shared(rows: Sequence[Row], batch_size: int) -> tuple[Step | Batch, ...]:
    """Rows as a tree of shared beginnings, no more than `batch_size` rows below any step but a common root."""
    order = sorted(range(len(rows)), key=lambda r: rows[r].ids)
    shared = [0] + [_common(rows[a], rows[b]) for a, b in itertools.pairwise(order)]
    roots = _tree(order, shared, 0, len(order), 0)
    return _schedule(rows, [(node, -1) for node in roots], 0, batch_size)


def cost(plan: Sequence[Step | Batch], rows: Sequence[Row]) -> tuple[int, int]:
    """Number of tokens a plan computes, padding included, and number of forwards."""
    tokens = forwards = 0
    for part in plan:
        forwards += 1
        if isinstance(part, Batch):
            tokens += len(part.rows) * (max(len(rows[r].ids) for r in part.rows) - part.past)
            continue
        below, more = cost(part.then, rows)
        tokens += len(part.nodes) * (part.end - part.past) + below
        forwards += more
    return tokens, forwards


def can_share(model: Any) -> bool:
    """Whether the model's cache holds nothing but keys and values, so that it can be repeated.

    Only architectures of transformers itself are trusted; state-space and hybrid models keep a running state
    of another kind and are run whole.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    if not type(model).__module__.startswith("transformers.models."):
        return False
    if cache_argument(model) is None or not accepts(model, "use_cache"):
        return False
    if model.config.is_encoder_decoder or getattr(model, "_is_stateful", False):
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def execute(
    model: Any, plan: Sequence[Step | Batch], rows: Sequence[Row], device: torch.device, cache: Any = None
) -> Iterator[tuple[Batch, Any]]:
    """Walk a plan depth first; yields every batch with its own cache of `past` tokens (None when `past` is 0)."""
    from transformers.cache_utils import DynamicCache

    for part in plan:
        branch = _select(cache, part.parents, device) if part.past else None
        if isinstance(part, Batch):
            yield part, branch
            continue
        branch = branch if branch is not None else DynamicCache(config=model.config)
        ids = pad([rows[r].ids[part.past : part.end] for r in part.nodes], device)
        arguments: dict[str, Any] = {str(cache_argument(model)): branch, "use_cache": True}
        if accepts(model, "logits_to_keep"):
            arguments["logits_to_keep"] = 1
        model(input_ids=ids, **arguments)
        yield from execute(model, part.then, rows, device, branch)


def _common(a: Row, b: Row) -> int:
    """Tokens both rows begin with, before the first position whose output is needed."""
    limit = min(a.first, b.first, len(a.ids), len(b.ids))
    return next((i for i in range(limit) if a.ids[i] != b.ids[i]), limit)


def _tree(order: list[int], shared: list[int], low: int, high: int, past: int) -> list[Node]:
    """Nodes over the sorted rows `order[low:high]`, which share `past` tokens already.

    A node is dropped, and its children moved up, where it would save fewer tokens than a forward costs.
    """
    if high - low == 1:
        return [Node(past, [order[low]])]
    end = min(shared[low + 1 : high])
    cuts = [low, *(i for i in range(low + 1, high) if shared[i] == end), high]
    keep = (end - past) * (len(cuts) - 2) >= FORWARD_COST // 4
    start = end if keep else past
    children = [node for a, b in itertools.pairwise(cuts) for node in _tree(order, shared, a, b, start)]
    return [Node(end, order[low:high], children)] if keep else children


def _schedule(
    rows: Sequence[Row], nodes: list[tuple[Node, int]], past: int, batch_size: int
) -> tuple[Step | Batch, ...]:
    """Steps and batches for nodes that follow a cache of `past` tokens; each comes with its cache row."""
    inner = sorted((pair for pair in nodes if pair[0].children), key=lambda pair: pair[0].end)
    leaves = [pair for pair in nodes if not pair[0].children]
    parts: list[Step | Batch] = []
    for bucket in _buckets(inner, batch_size):
        end = bucket[0][0].end
        below = [(child, i) for i, (node, _) in enumerate(bucket) for child in node.children]
        parts.append(
            Step(
                tuple(node.rows[0] for node, _ in bucket),
                past,
                end,
                tuple(parent for _, parent in bucket),
                _schedule(rows, below, end, batch_size),
            )
        )
    leaves.sort(key=lambda pair: (-len(rows[pair[0].rows[0]].ids), pair[0].rows[0]))
    for i in range(0, len(leaves), batch_size):
        chunk = leaves[i : i + batch_size]
        parts.append(Batch(tuple(n.rows[0] for n, _ in chunk), past, tuple(p for _, p in chunk)))
    return tuple(parts)


def _buckets(inner: list[tuple[Node, int]], batch_size: int) -> Iterator[list[tuple[Node, int]]]:
    """Cut nodes sorted by end into batches: of bounded size, and while cutting them all short costs little."""
    bucket: list[tuple[Node, int]] = []
    size = waste = 0
    for pair in inner:
        node = pair[0]
        extra = (node.end - bucket[0][0].end) * (len(node.children) - 1) if bucket else 0
        if bucket and (size + len(node.rows) > batch_size or waste + extra > 2 * FORWARD_COST):
            yield bucket
            bucket, size, waste, extra = [], 0, 0, 0
        bucket.append(pair)
        size += len(node.rows)
        waste += extra
    if bucket:
        yield bucket


def _select(cache: Any, parents: Sequence[int], device: torch.device) -> Any:
    """A cache with the given rows; the original stays as it was, because its layers never write in place."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(torch.tensor(parents, device=device))
    return chosen
