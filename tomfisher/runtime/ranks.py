"""The processes of one run: which this one is, what it has to do, and what they tell one another.

A process group (`torch.distributed`) that is initialised makes every call of `tomfisher` that can be shared a call of
all its ranks: each makes it with the same arguments, does its share, and gets the whole result.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tomfisher.provenance import versions
from tomfisher.runtime.board import Board, RankError, activate
from tomfisher.runtime.ordered_sum import gather_rows, ordered_rows, ordered_sum_, place_of

__all__ = ["RankError", "Team", "alone", "current", "launched", "shares", "started"]

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SHOWN = 100  # characters of a value in a message

T = TypeVar("T")


class Team:
    """The ranks of a call; a process that is alone is a team of one, for which everything here costs nothing.

    Args:
        board: what the ranks tell one another; None for one process.
    """

    def __init__(self, board: Board | None = None) -> None:
        self._board = board
        self.rank = 0 if board is None else board.rank
        self.size = 1 if board is None else board.size

    @property
    def is_first(self) -> bool:
        """Whether this rank is the one that writes and prints."""
        return self.rank == 0

    @contextlib.contextmanager
    def call(self, name: str) -> Iterator[None]:
        """What all ranks do together: it ends for all of them, or fails for all.

        Args:
            name: of the call, for messages.

        Raises:
            RankError: in the other ranks, where one raises something or dies.
            ValueError: the ranks run different versions.
        """
        if self._board is None:
            yield
            return
        with self._board.call(name):
            if not self._board.compared:
                self.agree("the software", versions())
                self._board.compared = True
            yield

    def exchange(self, step: str, value: Any = None) -> list[Any]:
        """The JSON values that all ranks give, in rank order; all wait for the last.

        Args:
            step: where this rank is, for messages.
            value: its own.
        """
        return [value] if self._board is None else self._board.exchange(step, value)

    def agree(self, what: str, facts: Mapping[str, Any]) -> None:
        """Refuse to go on where ranks differ in a fact.

        Args:
            what: in which all ranks have to agree, for messages.
            facts: name to JSON value, possibly nested.

        Raises:
            ValueError: on all ranks; it names the first rank that differs from rank 0, and in what.
        """
        if self._board is None:
            return
        told = self.exchange(what, json.loads(json.dumps(facts)))
        for rank, other in enumerate(told):
            if differing := list(_differences(told[0], other)):
                lines = "\n".join(
                    f"  {name}: {_shown(a)} on rank 0, {_shown(b)} on rank {rank}"
                    for name, a, b in differing[:5]
                )
                raise ValueError(
                    f"Rank {rank} differs from rank 0 in {what}:\n{lines}\n"
                    "Give every rank the same model, data, settings and versions."
                )

    def first(self, step: str, action: Callable[[], T]) -> T:
        """What rank 0's `action` returns, which has to be JSON; the others wait for it.

        Args:
            step: what is done, for messages.
            action: done by rank 0 alone.
        """
        if self._board is None:
            return action()
        with alone():
            value = action() if self.is_first else None
        given: T = self.exchange(step, value)[0]
        return given

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, added in rank order; see `ordered_sum_`.

        Raises:
            RankError: a rank ended meanwhile.
            ValueError: the backend of the process group cannot exchange these tensors.
        """
        if self._board is None:
            return
        devices = list(dict.fromkeys(tensor.device for tensor in tensors))
        layout = [[devices.index(tensor.device), *tensor.shape] for tensor in tensors]
        self.agree("the tensors to add", {"device and shape": layout})
        with self._exchanging():
            ordered_sum_(tensors)

    def sum_rows(self, tensor: Tensor) -> Tensor:
        """This rank's rows of the sum of a tensor over the ranks, added in rank order; see `ordered_rows`.

        Raises:
            RankError: a rank ended meanwhile.
        """
        if self._board is None:
            return tensor
        with self._exchanging():
            return ordered_rows(tensor)

    def gather_rows(self, rows: Tensor, into: Tensor) -> None:
        """Fill a tensor with the rows that all ranks hold; see `gather_rows` of `tomfisher.runtime.ordered_sum`.

        Raises:
            RankError: a rank ended meanwhile.
        """
        if self._board is None:
            into.copy_(rows)
            return
        with self._exchanging():
            gather_rows(rows, into)

    @contextlib.contextmanager
    def _exchanging(self) -> Iterator[None]:
        """An exchange of tensors that breaks off says which rank is the cause."""
        assert self._board is not None
        try:
            yield
        except RuntimeError as error:
            raise self._board.explained(error) from error

    @contextlib.contextmanager
    def exchanging(self) -> Iterator[None]:
        """While the block runs, an exchange of tensors that breaks off because a rank has ended says which.

        Raises:
            RankError: for a RuntimeError of torch's collectives.
        """
        try:
            yield
        except RuntimeError as error:
            if self._board is None or not _is_broken_off(error):
                raise
            raise self._board.explained(error) from error

    def check_backend(self, devices: Sequence[torch.device]) -> None:
        """Refuse a process group that cannot exchange tensors of these devices.

        Raises:
            ValueError: naming the backend.
        """
        if self._board is not None:
            for device in devices:
                place_of(device)

    def share(self, weights: Sequence[int]) -> list[int]:
        """The indices of this rank's share, rising; see `shares`."""
        return shares(weights, self.size)[self.rank]

    def merged(self, step: str, count: int, own: Mapping[int, Any]) -> list[Any]:
        """What the ranks have for `count` things, each of which one of them has, in order.

        Args:
            step: where this rank is, for messages.
            count: of all things.
            own: index to JSON value.
        """
        if self._board is None:
            return [own[i] for i in range(count)]
        found = {
            int(i): value
            for part in self.exchange(step, {str(i): v for i, v in own.items()})
            for i, value in part.items()
        }
        return [found[i] for i in range(count)]


def shares(weights: Sequence[int], size: int) -> list[list[int]]:
    """Indices of `weights` in `size` parts of about the same weight: the heaviest first, each to the lightest part.

    Args:
        weights: what each thing costs.
        size: number of parts; there may be more of them than things.

    Returns:
        Rising indices for each part; every index once.
    """
    parts: list[list[int]] = [[] for _ in range(size)]
    loads = [(0, part) for part in range(size)]
    for index in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        load, part = heapq.heappop(loads)
        parts[part].append(index)
        heapq.heappush(loads, (load + weights[index], part))
    return [sorted(part) for part in parts]


_ALONE: ContextVar[bool] = ContextVar("alone", default=False)
_KNOWN: tuple[dist.Store, Board] | None = None
_GENERATIONS = 0


def current() -> Team:
    """The team that this process is in: the default process group, or itself.

    Raises:
        ValueError: it was launched as one of several, but no process group is initialised.
    """
    global _KNOWN, _GENERATIONS
    if _ALONE.get():
        return Team()
    if not (dist.is_available() and dist.is_initialized()):
        _refuse_missing_group()
        return Team()
    if dist.get_world_size() == 1:
        return Team()
    store = dist.distributed_c10d._get_default_store()
    if _KNOWN is None or _KNOWN[0] is not store:
        _GENERATIONS += 1
        _KNOWN = store, Board(store, dist.get_rank(), dist.get_world_size(), _GENERATIONS)
        activate(_KNOWN[1])
    return Team(_KNOWN[1])


def _refuse_missing_group() -> None:
    size = launched()
    if size > 1:
        raise ValueError(
            f"This process was launched as rank {os.environ['RANK']} of {size}, but no process group is initialised: "
            "each would do the whole work. Call torch.distributed.init_process_group('gloo') first ('nccl' on "
            "GPUs), or do it on purpose within `tomfisher.runtime.ranks.alone()`."
        )


def launched() -> int:
    """As one of how many processes this one was launched, by torchrun or whatever sets its variables."""
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if size.isdecimal() and "RANK" in os.environ else 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within the block this process works by itself, whatever process group it is in."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


@contextlib.contextmanager
def started(device: str | None = None) -> Iterator[Team]:
    """The team for which this process was launched, its process group initialised for the time of the block.

    With gloo on the CPU, and NCCL on GPUs, of which each process takes the one of its `LOCAL_RANK`.

    Args:
        device: where the work will be; None for a GPU where there is one.

    Raises:
        ValueError: some of the variables that torchrun sets are missing.
    """
    if launched() == 1 or dist.is_initialized():
        yield current()
        return
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE is {launched()}, but {' and '.join(missing)} not set. Start the processes with torchrun."
        )
    gpu = torch.cuda.is_available() and torch.device(device or "cuda").type == "cuda"
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    yield current()
    dist.destroy_process_group()  # after an error the process ends anyway, and a broken group could keep it


def _is_broken_off(error: RuntimeError) -> bool:
    """Whether a collective of torch.distributed failed, of any backend."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in text or "nccl" in text


def _differences(a: Any, b: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            yield from _differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    elif a != b:
        yield name, a, b


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
