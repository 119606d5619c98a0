"""What keeps an undo safe: Ctrl-C waits for the end of a write, and the last write is the first one undone."""

from __future__ import annotations

import contextlib
import signal
import threading
import weakref
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from types import FrameType

Key = tuple[str, int]  # device, address of the storage
_applied: list[tuple[weakref.ref[object], AbstractSet[Key]]] = []  # the last applied at the end


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold back SIGINT during the block and deliver it, once, to the previous handler right after.

    Outside the main thread, where Python delivers no signal, and where a handler was installed by other
    than Python code, the block just runs.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    received = False

    def remember(signum: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if received:
            signal.raise_signal(signal.SIGINT)


def push(owner: object, keys: AbstractSet[Key]) -> None:
    """Put `owner` on top of every storage."""
    _applied[:] = [*_alive(), (weakref.ref(owner), keys)]


def above(owner: object, keys: AbstractSet[Key]) -> list[object]:
    """The perturbations that lie on top of `owner` somewhere, the topmost first."""
    later: list[object] = []
    for reference, others in reversed(_alive()):
        other = reference()
        if other is owner:
            break
        if other is not None and not keys.isdisjoint(others):
            later.append(other)
    return later


def remove(owner: object) -> None:
    """Take `owner` off."""
    _applied[:] = [entry for entry in _alive() if entry[0]() is not owner]


def _alive() -> list[tuple[weakref.ref[object], AbstractSet[Key]]]:
    """A perturbation that was dropped without `undo()` is permanent: it no longer stands in anyone's way."""
    return [entry for entry in _applied if entry[0]() is not None]
