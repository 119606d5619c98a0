"""Which tokens are computed in which forward: what several rows begin with is computed once.

The rows form a tree of shared beginnings. There are two ways to compute the beginnings once, both exact up to
rounding:

- Packed: rows are laid side by side in one sequence, a shared beginning once, and an attention mask lets every
  token see its own beginning alone (the "tree attention" of speculative decoding, arXiv 2305.09781).
- By steps: an inner node of the tree is run first, batched with others of about the same length; its key-value
  cache then serves everything below. Nodes of one step must end at the same token, because a cache with padding
  inside would need tricks that architectures understand differently: so a step ends where its shortest node does,
  and the few tokens beyond are left to what is below.

Packing needs fewer and larger forwards; steps win where much stands after one long beginning. At every node the
cheaper way is taken. Rows are handled in sorted order, where those that share a beginning are neighbours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

# What one more forward costs, in tokens: reading the weights and starting the kernels.
FORWARD_COST = 32
# Attention over this many tokens costs as much as the rest of the model (SmolLM2-135M on a CPU: about 900).
ATTENTION = 1024
# Beginnings within beginnings, such as the turns of a dialogue, are followed no further than this.
DEEPEST = 100


@dataclass(frozen=True)
class Row:
    """One sequence to run; outputs are needed from position `first` on."""

    ids: tuple[int, ...]
    first: int


def merged_rows(
    spans: list[tuple[tuple[int, ...], tuple[int, ...]]], merge: bool
) -> tuple[list[Row], list[int]]:
    """Distinct rows, and which one each answer is read off: with `merge` one that begins with all it needs."""
    inputs = [prompt + answer[:-1] for prompt, answer in spans]
    longest: dict[tuple[int, ...], tuple[int, ...]] = {}
    following: tuple[int, ...] = ()
    for ids in sorted(set(inputs), reverse=True):
        following = following if merge and following[: len(ids)] == ids else ids
        longest[ids] = following
    first: dict[tuple[int, ...], int] = {}
    for ids, (prompt, _) in zip(inputs, spans, strict=True):
        whole = longest[ids]
        first[whole] = min(first.get(whole, len(whole)), len(prompt) - 1)
    number = {whole: i for i, whole in enumerate(first)}
    return [Row(whole, start) for whole, start in first.items()], [number[longest[ids]] for ids in inputs]


@dataclass
class Node:
    """Rows that share their first `end` tokens."""

    end: int
    rows: list[int]
    children: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Pack:
    """The tokens of one row, or of several side by side, after a cache; `paths[row]` says where the row's are.

    The tokens of several rows stand in no particular order, but those whose output is needed stand first.
    """

    ids: tuple[int, ...]
    paths: Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Batch:
    """Packs run to their end, after a cache of `past` tokens; `parents[i]` is the cache row that pack i follows."""

    packs: tuple[Pack, ...]
    past: int
    parents: tuple[int, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """The rows in it, pack by pack."""
        return tuple(row for pack in self.packs for row in pack.paths)


@dataclass(frozen=True)
class Step:
    """Nodes run together: tokens `[past:end]` of each node's first row, and what follows after them."""

    nodes: tuple[int, ...]
    past: int
    end: int
    parents: tuple[int, ...]
    then: tuple[Step | Batch, ...]


Plan = tuple[Step | Batch, ...]


def plan_whole(rows: Sequence[Row], batch_size: int, padded: bool = True) -> Plan:
    """Whole rows in batches of similar length (of equal length where nothing may be padded), longest first."""
    groups = [_Group((r,), len(row.ids), -1) for r, row in enumerate(rows)]
    planner = _Planner(rows, {}, batch_size, False)
    lengths = sorted({group.length for group in groups}, reverse=True)
    parts = [groups] if padded else [[g for g in groups if g.length == length] for length in lengths]
    return tuple(batch for part in parts for batch in planner.batches(part, 0))


def plan_shared(rows: Sequence[Row], batch_size: int, pack: bool) -> Plan:
    """Shared beginnings once; no more than `batch_size` rows in any forward, nor below the nodes of a step together.

    Args:
        rows: the sequences.
        batch_size: number of rows, at least 1; a node with more of them is a step of its own.
        pack: whether rows may be packed, or there are steps only.
    """
    order = sorted(range(len(rows)), key=lambda r: rows[r].ids)
    overlaps = [0] + [_common(rows[a].ids, rows[b].ids) for a, b in itertools.pairwise(order)]
    # a beginning in a cache gives no outputs
    shared = [0] + [
        min(overlap, rows[a].first, rows[b].first)
        for overlap, (a, b) in zip(overlaps[1:], itertools.pairwise(order), strict=True)
    ]
    roots = _tree(order, shared, 0, len(order), 0)
    planner = _Planner(rows, dict(zip(order, overlaps, strict=True)), batch_size, pack)
    return planner.schedule([(node, -1) for node in roots], 0)


def cost(plan: Sequence[Step | Batch]) -> float:
    """What a plan costs, in tokens: those it computes, padding included, their attention, and its forwards."""
    total = 0.0
    for part in plan:
        if isinstance(part, Batch):
            total += _batch_cost([len(pack.ids) for pack in part.packs], part.past)
        else:
            total += _batch_cost([part.end - part.past] * len(part.nodes), part.past) + cost(part.then)
    return total


def rows_of_plan(plan: Sequence[Step | Batch]) -> list[int]:
    """The rows that a plan runs to their end, in its order."""
    return [
        row for part in plan for row in (part.rows if isinstance(part, Batch) else rows_of_plan(part.then))
    ]


def _batch_cost(lengths: Sequence[int], past: int) -> float:
    return FORWARD_COST + len(lengths) * _length_cost(max(lengths), past)


def _length_cost(length: int, past: int) -> float:
    return length * (1 + (past + length) / ATTENTION)


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Number of tokens that both begin with."""
    limit = min(len(a), len(b))
    return next((i for i in range(limit) if a[i] != b[i]), limit)


def _tree(order: list[int], shared: list[int], low: int, high: int, past: int, depth: int = 0) -> list[Node]:
    """Nodes over the sorted rows `order[low:high]`, which share `past` tokens already.

    A node is dropped, and its children moved up, where it would save fewer tokens than a forward costs.
    """
    if high - low == 1 or depth == DEEPEST:
        return [Node(past, [r]) for r in order[low:high]]
    end = min(shared[low + 1 : high])
    cuts = [low, *(i for i in range(low + 1, high) if shared[i] == end), high]
    keep = (end - past) * (len(cuts) - 2) >= FORWARD_COST // 4
    start = end if keep else past
    children = [
        node for a, b in itertools.pairwise(cuts) for node in _tree(order, shared, a, b, start, depth + 1)
    ]
    return [Node(end, order[low:high], children)] if keep else children


@dataclass(frozen=True)
class _Planner:
    """What all parts of a plan depend on; `overlaps[row]` tokens a row shares with the one before it in order."""

    rows: Sequence[Row]
    overlaps: dict[int, int]
    batch_size: int
    pack: bool

    def schedule(self, nodes: list[tuple[Node, int]], past: int) -> Plan:
        """The cheaper way through nodes that follow a cache of `past` tokens; each comes with its cache row."""
        steps = self._by_steps(nodes, past)
        if not self.pack:
            return steps
        groups = self._groups(nodes, past)
        price = sum(
            _batch_cost([g.length for g in batch], past) for batch in _chunks(groups, self.batch_size)
        )
        return self.batches(groups, past) if price <= cost(steps) else steps

    def _by_steps(self, nodes: list[tuple[Node, int]], past: int) -> Plan:
        """A step for every bucket of inner nodes, and batches of the leaves."""
        inner = sorted((pair for pair in nodes if pair[0].children), key=lambda pair: pair[0].end)
        steps: list[Step | Batch] = []
        for bucket in _buckets(inner, self.batch_size):
            end = bucket[0][0].end
            below = [(child, i) for i, (node, _) in enumerate(bucket) for child in node.children]
            firsts, parents = tuple(n.rows[0] for n, _ in bucket), tuple(parent for _, parent in bucket)
            steps.append(Step(firsts, past, end, parents, self.schedule(below, end)))
        leaves = [
            _Group(tuple(node.rows), len(self.rows[node.rows[0]].ids) - past, parent)
            for node, parent in nodes
            if not node.children
        ]
        return (*steps, *self.batches(leaves, past))

    def _groups(self, nodes: list[tuple[Node, int]], past: int) -> list[_Group]:
        """What to pack: a row joins those before it while that costs less than standing alone."""
        groups: list[_Group] = []
        for r, parent in ((r, parent) for node, parent in nodes for r in node.rows):
            alone = len(self.rows[r].ids) - past
            last = groups[-1] if groups else None
            if last and last.parent == parent and len(last.rows) < self.batch_size:
                longer = last.length + alone - (self.overlaps[r] - past)
                if _length_cost(longer, past) - _length_cost(last.length, past) <= _length_cost(alone, past):
                    groups[-1] = _Group((*last.rows, r), longer, parent)
                    continue
            groups.append(_Group((r,), alone, parent))
        return groups

    def batches(self, groups: Sequence[_Group], past: int) -> Plan:
        """The groups laid out, in batches."""
        return tuple(
            Batch(tuple(self._lay_out(g, past) for g in batch), past, tuple(g.parent for g in batch))
            for batch in _chunks(groups, self.batch_size)
        )

    def _lay_out(self, group: _Group, past: int) -> Pack:
        """The rows of a group in one sequence."""
        if len(group.rows) == 1:
            ids = self.rows[group.rows[0]].ids[past:]
            return Pack(ids, {group.rows[0]: range(len(ids))})
        tokens: list[int] = []
        paths: dict[int, list[int]] = {}
        path: list[int] = []
        for r in group.rows:
            kept = self.overlaps[r] - past if paths else 0
            own = self.rows[r].ids[past + kept :]
            path = path[:kept] + list(range(len(tokens), len(tokens) + len(own)))
            paths[r] = path
            tokens += own
        needed = {i for r, path in paths.items() for i in path[self.rows[r].first - past :]}
        order = sorted(range(len(tokens)), key=lambda i: (i not in needed, i))
        place = {i: k for k, i in enumerate(order)}
        moved = {r: tuple(place[i] for i in path) for r, path in paths.items()}
        return Pack(tuple(tokens[i] for i in order), moved)


@dataclass(frozen=True)
class _Group:
    """Rows to lay out in one sequence of `length` tokens after cache row `parent`."""

    rows: tuple[int, ...]
    length: int
    parent: int


def _chunks(groups: Sequence[_Group], batch_size: int) -> Iterator[list[_Group]]:
    """Groups of similar length together, longest first; single rows, whose outputs stand last, apart from others."""
    chunk: list[_Group] = []
    size = 0
    for group in sorted(groups, key=lambda g: (len(g.rows) == 1, -g.length, min(g.rows))):
        alike = not chunk or (len(chunk[0].rows) == 1) == (len(group.rows) == 1)
        if chunk and (size + len(group.rows) > batch_size or not alike):
            yield chunk
            chunk, size = [], 0
        chunk.append(group)
        size += len(group.rows)
    if chunk:
        yield chunk


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
