"""What ranks tell one another beside tensors: small facts, that they are alive, and why one of them ended.

All of it goes through the process group's store, which any backend has. Each rank gives a sign of life every second,
from a thread, and watches the next rank's: one that is busy for hours is waited for, one that has died is not.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch.distributed as dist

BEAT = 1.0  # seconds from one sign of life to the next
GRACE = 3 * BEAT  # so long a rank that fails waits for the others to hear of it
LATE = 1800.0  # seconds in which every rank has to make the call that the first one made
ENVIRONMENT = "TOMFISHER_RANK_TIMEOUT"
_PREFIX = "tomfisher"

T = TypeVar("T")


class RankError(Exception):
    """Another rank has ended, or does something else than this one."""


def silence() -> float:
    """Seconds without a sign of life after which a rank counts as dead: `TOMFISHER_RANK_TIMEOUT`, or 60.

    Raises:
        ValueError: the variable is not a number of at least `GRACE` seconds.
    """
    given = os.environ.get(ENVIRONMENT, "60")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not seconds >= GRACE:
        raise ValueError(f"{ENVIRONMENT} must be a number of seconds, at least {GRACE:g}, got {given!r}.")
    return seconds


class Board:
    """The ranks of one process group, as one of them sees them.

    Every rank enters `call` for the same calls in the same order, and makes the same exchanges in them.

    Args:
        store: of the process group.
        rank: this one.
        size: of the group.
        generation: of the group within this process, for a store that serves several.
    """

    def __init__(self, store: Any, rank: int, size: int, generation: int = 0) -> None:
        self.rank, self.size = rank, size
        prefix = f"{_PREFIX}/{generation}"
        self._store = dist.PrefixStore(prefix, store.clone())
        # a connection of its own, since one serves one thread at a time
        self._pulse = _Pulse(dist.PrefixStore(prefix, store.clone()), rank, size, silence())
        self._pulse.start()
        atexit.register(self._pulse.stop)
        self._calls = self._steps = 0
        self._inside = False
        self.compared = False  # whether all ranks are known to run the same software
        self._previous: str | None = None

    @contextlib.contextmanager
    def call(self, name: str) -> Iterator[None]:
        """What all ranks do together: it ends for all of them, or fails for all. Within another call, a part of it.

        Args:
            name: of the call, for messages.

        Raises:
            RankError: in the other ranks, where one raises something.
        """
        if self._inside:
            yield
            return
        self._calls, self._steps, self._inside = self._calls + 1, 0, True
        self._pulse.begin(self._calls)
        try:
            self.exchange(name, limit=LATE)
            yield
            self.exchange(f"the end of {name}")
            self._leave()
        except RankError:
            self._stay()
            raise
        except BaseException as error:
            self._tell(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
            raise
        finally:
            self._inside = False
            self._pulse.begin(0)

    def exchange(self, step: str, value: Any = None, limit: float | None = None) -> list[Any]:
        """Give a fact to all ranks, and take theirs; all wait for the last.

        Args:
            step: where this rank is; the others have to be there too.
            value: JSON.
            limit: seconds to wait for ranks that are alive; None for any time.

        Returns:
            The values of all ranks, in rank order.

        Raises:
            RankError: a rank has ended, is late or is at another step.
        """
        self._steps += 1
        key = f"step/{self._calls}/{self._steps}"
        self._ask(self._store.set, f"{key}/{self.rank}", json.dumps([step, value]))
        self._wait([f"{key}/{rank}" for rank in range(self.size)], step, limit)
        given = [json.loads(self._ask(self._store.get, f"{key}/{rank}")) for rank in range(self.size)]
        if self._previous is not None:  # which all have read, being here
            self._ask(self._store.delete_key, f"{self._previous}/{self.rank}")
        self._previous = key
        for rank, (where, _) in enumerate(given):
            if where != given[0][0]:
                raise RankError(
                    f"Rank {rank} is at {where!r} where rank 0 is at {given[0][0]!r}. Every rank of the process group "
                    "has to make the same calls in the same order; `tomfisher.runtime.ranks.alone()` is for what one "
                    "rank does by itself."
                )
        return [value for _, value in given]

    def check(self) -> None:
        """Stop here if another rank is known to have ended.

        Raises:
            RankError: saying which, and why.
        """
        if self._inside and self._pulse.failure is not None:
            raise RankError(self._pulse.failure)

    def explained(self, error: Exception) -> RankError:
        """What to raise for an exchange of tensors that broke off: which rank is the cause, once that is known."""
        end = time.monotonic() + self._pulse.silent + GRACE
        while self._pulse.failure is None and time.monotonic() < end:
            time.sleep(BEAT / 10)
        return RankError(self._pulse.failure or f"An exchange of tensors between the ranks failed: {error}")

    def _wait(self, keys: list[str], step: str, limit: float | None) -> None:
        start, pause = time.monotonic(), 0.0005
        while not self._ask(self._store.check, keys):
            self.check()
            if limit is not None and time.monotonic() - start > limit:
                missing = [str(r) for r, key in enumerate(keys) if not self._ask(self._store.check, [key])]
                raise RankError(
                    f"Rank {', '.join(missing)} did not call {step} within {limit:g} s of rank {self.rank}. Every rank "
                    "of the process group has to make the same calls; `tomfisher.runtime.ranks.alone()` is for what "
                    "one rank does by itself."
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def _leave(self) -> None:
        """Rank 0, whose process may keep the store, goes last."""
        if self.rank:
            self._ask(self._store.set, f"left/{self._calls}/{self.rank}", "")
        else:
            self._await_others("left")

    def _stay(self) -> None:
        """Rank 0, whose process may keep the store, gives the others time to hear which rank has ended."""
        if self.rank == 0 and self._pulse.failure is not None:
            with contextlib.suppress(RankError):  # the store is gone: there is nothing to hear
                self._await_others("seen")

    def _tell(self, text: str) -> None:
        """Tell the others why this rank ends, and give them time to hear it."""
        with contextlib.suppress(RuntimeError):  # the store is gone: nobody can be told
            self._pulse.post(self._store, self._calls, self.rank, text)
            self._store.set(f"seen/{self._calls}/{self.rank}", "")
            self._await_others("seen")

    def _await_others(self, mark: str) -> None:
        """Wait until all others have left a mark, for no longer than `GRACE`."""
        keys = [f"{mark}/{self._calls}/{rank}" for rank in range(self.size) if rank != self.rank]
        end = time.monotonic() + GRACE
        while not self._ask(self._store.check, keys) and time.monotonic() < end:
            time.sleep(BEAT / 100)

    def _ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """What the store answers.

        Raises:
            RankError: it gives none any more.
        """
        try:
            return question(*arguments)
        except RuntimeError as error:
            raise RankError(self._pulse.failure or _lost(error)) from error


class _Pulse(threading.Thread):
    """Gives this rank's signs of life, watches the next rank's, and hears of ranks that have ended."""

    def __init__(self, store: Any, rank: int, size: int, silent: float) -> None:
        super().__init__(name="tomfisher ranks", daemon=True)
        self.silent = silent
        self.failure: str | None = None
        self._store, self._rank, self._next = store, rank, (rank + 1) % size
        self._call = 0
        self._sign: bytes | None = None
        self._changed = time.monotonic()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the thread: one that the interpreter's end meets inside the store aborts the whole process."""
        self._stopped.set()
        self.join(GRACE)

    def begin(self, call: int) -> None:
        """From here on this call is running; 0 for none."""
        self._call, self.failure = call, None

    def run(self) -> None:
        """Until `stop`, or until the store ends."""
        beat = 0
        while not self._stopped.wait(BEAT if beat else 0):
            try:
                self._store.set(f"alive/{self._rank}", str(beat))
                self._watch()
                self._listen()
            except RuntimeError as error:
                self.failure = self.failure or _lost(error)
                return
            beat += 1

    def post(self, store: Any, call: int, rank: int, text: str) -> None:
        """Put down why a rank ended; the first word stands."""
        store.compare_set(f"failed/{call}", "", json.dumps([rank, text]))

    def _watch(self) -> None:
        """Put down that the next rank is dead when it has been silent for too long; one that never spoke may come."""
        now, key = time.monotonic(), f"alive/{self._next}"
        sign = self._store.get(key) if self._store.check([key]) else None
        if sign != self._sign or sign is None:
            self._sign, self._changed = sign, now
        elif self._call and now - self._changed > self.silent:
            text = f"no sign of life for {self.silent:g} s: its process was killed, has ended, or is stopped"
            self.post(self._store, self._call, self._next, text)

    def _listen(self) -> None:
        call = self._call
        if not call or self.failure is not None or not self._store.check([f"failed/{call}"]):
            return
        rank, text = json.loads(self._store.get(f"failed/{call}"))
        if call == self._call:
            self.failure = f"Rank {rank} has ended, and the others with it: {text}"
            self._store.set(f"seen/{call}/{self._rank}", "")


def _lost(error: Exception) -> str:
    return (
        "The process group's store does not answer any more: the process that keeps it (rank 0, or its launcher) has "
        f"ended, and the other ranks end with it ({' '.join(str(error).split())[:200]})."
    )


_ACTIVE: Board | None = None


def activate(board: Board | None) -> None:
    """From here on `check` asks this board."""
    global _ACTIVE
    _ACTIVE = board


def check() -> None:
    """Stop here if another rank of a call that is running is known to have ended; nothing in a single process.

    Raises:
        RankError: saying which, and why.
    """
    if _ACTIVE is not None:
        _ACTIVE.check()
