"""Ctrl-C waits until a write is complete."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


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
