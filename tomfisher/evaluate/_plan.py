"""Which tokens are computed in which forward: what several rows begin with is computed once.

The rows form a tree of shared beginnings. There are two ways to compute the beginnings once, both exact up to
rounding:

- Packed: rows are laid side by side in one sequence, a shared beginning once, and an attention mask lets every
  token see its own beginning alone (the "tree attention" of speculative decoding, arXiv 2305.09781).
- By steps: an inner node of the tree is run first, batched with others of about the same length; its key-value
  cache then serves everything below. Nodes of one step must end at the same token, because a cache with padding
  inside would need tricks that architectures understand differently: so a step ends where its shortest node does,
  and the few tokens beyond are left to what is below.

Packing needs fewer and larger forwards; steps win where much stands behind one long beginning. At every node the
cheaper way is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# What one more forward costs, in tokens: reading the weights and starting the kernels.
FORWARD_COST = 32
# Attention over this many tokens costs as much as the rest of the model (SmolLM2-135M on a CPU: about 900).
ATTENTION = 1024


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
class Pack:
    """The tokens of one row, or of several side by side, behind a cache; `paths[row]` says where the row's are.

    The tokens of several rows stand in no particular order, but those whose output is needed stand first.
    """

    ids: tuple[int, ...]
    paths: dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class Batch:
    """Packs run to their end, behind a cache of `past` tokens; `parents[i]` is the cache row that pack i follows."""

    packs: tuple[Pack, ...]
    past: int
    parents: tuple[int, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """The rows in it, pack by pack."""
        return tuple(row for pack in self.packs for row in pack.paths)


@dataclass(frozen=True)
class Step:
    """Nodes run together: tokens `[past:end]` of each node's first row, and what follows behind them."""

    nodes: tuple[int, ...]
    past: int
    end: int
    parents: tuple[int, ...]
    then: tuple[Step | Batch, ...]


Plan = tuple[Step | Batch, ...]


def plan_whole(rows: Sequence[Row], batch_size: int) -> Plan:
    """Whole rows in batches of similar length, longest first."""
    return _batches([(_single(rows, r, 0), -1) for r in range(len(rows))], 0, batch_size)


def plan_shared(rows: Sequence[Row], batch_size: int, pack: bool) -> Plan:
    """Shared beginnings once, no more than `batch_size` rows in any forward or below any step but a common root.

    Args:
        rows: the sequences.
        batch_size: number of rows, at least 1.
        pack: whether rows may be packed, or there are steps only.
    """
    order = sorted(range(len(rows)), key=lambda r: rows[r].ids)
    shared = [0] + [_common_before_output(rows[a], rows[b]) for a, b in itertools.pairwise(order)]
    roots = _tree(order, shared, 0, len(order), 0)
    return _schedule(rows, [(node, -1) for node in roots], 0, batch_size, pack)


def cost(plan: Sequence[Step | Batch]) -> float:
    """What a plan costs, in tokens: those it computes, padding included, their attention, and its forwards."""
    total = 0.0
    for part in plan:
        if isinstance(part, Batch):
            longest = max(len(pack.ids) for pack in part.packs)
            total += FORWARD_COST + len(part.packs) * _length_cost(longest, part.past)
        else:
            total += FORWARD_COST + len(part.nodes) * _length_cost(part.end - part.past, part.past)
            total += cost(part.then)
    return total


def _length_cost(length: int, past: int) -> float:
    return length * (1 + (past + length) / ATTENTION)


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Number of tokens that both begin with."""
    limit = min(len(a), len(b))
    return next((i for i in range(limit) if a[i] != b[i]), limit)


def _common_before_output(a: Row, b: Row) -> int:
    """Tokens both rows begin with, before the first position whose output is needed."""
    return min(a.first, b.first, _common(a.ids, b.ids))


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
    rows: Sequence[Row], nodes: list[tuple[Node, int]], past: int, batch_size: int, pack: bool
) -> Plan:
    """The cheaper way through nodes that follow a cache of `past` tokens; each comes with its cache row."""
    steps = _by_steps(rows, nodes, past, batch_size, pack)
    if not pack:
        return steps
    return min(_packed(rows, nodes, past, batch_size), steps, key=cost)


def _by_steps(
    rows: Sequence[Row], nodes: list[tuple[Node, int]], past: int, batch_size: int, pack: bool
) -> Plan:
    """A step for every bucket of inner nodes, and batches of the leaves."""
    inner = sorted((pair for pair in nodes if pair[0].children), key=lambda pair: pair[0].end)
    steps: list[Step | Batch] = []
    for bucket in _buckets(inner, batch_size):
        end = bucket[0][0].end
        below = [(child, i) for i, (node, _) in enumerate(bucket) for child in node.children]
        then = _schedule(rows, below, end, batch_size, pack)
        first, parents = (tuple(node.rows[0] for node, _ in bucket), tuple(parent for _, parent in bucket))
        steps.append(Step(first, past, end, parents, then))
    leaves = [(_single(rows, node.rows[0], past), parent) for node, parent in nodes if not node.children]
    return (*steps, *_batches(leaves, past, batch_size))


def _buckets(inner: list[tuple[Node, int]], batch_size: int) -> Iterator[list[tuple[Node, int]]]:
    """Cut nodes sorted by end into steps: of bounded size, and while cutting them all short costs little."""
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


def _packed(rows: Sequence[Row], nodes: list[tuple[Node, int]], past: int, batch_size: int) -> Plan:
    """Batches of packs: a row joins the pack before it while that costs less than standing alone."""
    packs = [
        (_side_by_side(rows, members, past), parent)
        for parent, group in itertools.groupby(nodes, key=lambda pair: pair[1])
        for members in _groups(rows, [r for node, _ in group for r in node.rows], past, batch_size)
    ]
    return _batches(packs, past, batch_size)


def _groups(rows: Sequence[Row], order: list[int], past: int, batch_size: int) -> Iterator[list[int]]:
    """Cut sorted rows behind one cache row into packs."""
    group: list[int] = []
    length = 0
    for r in order:
        alone = len(rows[r].ids) - past
        more = alone - (_common(rows[group[-1]].ids, rows[r].ids) - past) if group else alone
        joined = _length_cost(length + more, past) - _length_cost(length, past)
        if group and (len(group) == batch_size or joined > _length_cost(alone, past)):
            yield group
            group, length, more = [], 0, alone
        group.append(r)
        length += more
    yield group


def _batches(packs: list[tuple[Pack, int]], past: int, batch_size: int) -> Plan:
    """Packs of similar length together, longest first; each comes with its cache row."""
    batches: list[list[tuple[Pack, int]]] = []
    size = batch_size
    for pair in sorted(packs, key=lambda pair: (-len(pair[0].ids), min(pair[0].paths))):
        if size + len(pair[0].paths) > batch_size:
            batches.append([])
            size = 0
        batches[-1].append(pair)
        size += len(pair[0].paths)
    return tuple(Batch(tuple(p for p, _ in batch), past, tuple(i for _, i in batch)) for batch in batches)


def _single(rows: Sequence[Row], row: int, past: int) -> Pack:
    ids = rows[row].ids[past:]
    return Pack(ids, {row: tuple(range(len(ids)))})


def _side_by_side(rows: Sequence[Row], members: list[int], past: int) -> Pack:
    """The sorted rows in one sequence."""
    if len(members) == 1:
        return _single(rows, members[0], past)
    ids: list[int] = []
    paths: dict[int, list[int]] = {}
    path: list[int] = []
    previous: tuple[int, ...] = ()
    for r in members:
        tokens = rows[r].ids[past:]
        kept = _common(previous, tokens)
        path = path[:kept] + list(range(len(ids), len(ids) + len(tokens) - kept))
        ids += tokens[kept:]
        paths[r], previous = path, tokens
    needed = {i for r, path in paths.items() for i in path[rows[r].first - past :]}
    order = sorted(range(len(ids)), key=lambda i: (i not in needed, i))
    place = {i: k for k, i in enumerate(order)}
    return Pack(tuple(ids[i] for i in order), {r: tuple(place[i] for i in path) for r, path in paths.items()})
