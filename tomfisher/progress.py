"""One progress bar for the whole project; where there is no terminal, a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any

SECONDS = 30.0  # at least so long from one line to the next,
SHARE = 0.1  # and at least so much of the whole


_MUTED = False


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Within the block bars and notes are left out: another process of the same run has them."""
    global _MUTED
    before, _MUTED = _MUTED, True
    try:
        yield
    finally:
        _MUTED = before


def progress_bar(
    iterable: Iterable[Any] | None = None,
    total: int | None = None,
    desc: str = "",
    unit: str = "it",
    enabled: bool = True,
) -> Any:
    """A tqdm bar on standard error; a plain line there every 30 seconds or 10 % (the later) where it is no terminal.

    Args:
        iterable: what to walk over; None for a bar that is moved with `.update(n)`.
        total: number of units when `iterable` has no length.
        desc: short label in front of the bar.
        unit: the word after the count ("token", "prompt").
        enabled: False switches bar and lines off.

    Returns:
        A `tqdm.auto.tqdm`, or what behaves like one: usable as an iterable and as a context manager.
    """
    enabled = enabled and not _MUTED
    if enabled and not on_terminal():
        return _Lines(iterable, total, desc, unit)
    from tqdm.auto import tqdm

    return tqdm(iterable, total=total, desc=desc, unit=unit, disable=not enabled, dynamic_ncols=True)


def on_terminal() -> bool:
    """Whether standard error is a terminal, on which a bar can move."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


def note(line: str) -> None:
    """Tell the user something beside the result, on standard error; where nobody can be told, go on.

    Args:
        line: what is said, without the program's name.
    """
    if sys.stderr is None or _MUTED:
        return
    with contextlib.suppress(
        OSError, ValueError
    ):  # a closed pipe, a full disk, a closed stream: no work depends on it
        print(f"tomfisher: {line}", file=sys.stderr, flush=True)


class _Lines:
    """Progress for a log file: the part of tqdm's interface that is used here."""

    def __init__(self, iterable: Iterable[Any] | None, total: int | None, desc: str, unit: str) -> None:
        self._iterable = iterable
        self._total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self._desc, self._unit = desc, unit
        self._done = self._told = 0
        self._start = self._last = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable or ():
            yield item
            self.update(1)

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        """Count n more units, and tell if it is time."""
        self._done += n
        now = time.monotonic()
        if now - self._last < SECONDS or self._done - self._told < SHARE * (self._total or 0):
            return
        self._last, self._told = now, self._done
        text = f"{self._done:,} {self._unit}s"
        if self._total:
            left = (now - self._start) * (self._total - self._done) / self._done
            text = f"{self._done:,} of {self._total:,} {self._unit}s, about {duration(left)} left"
        note(f"{self._desc}: {text}")

    def set_postfix(self, *args: Any, **values: Any) -> None:
        """Figures after the bar; a line has none."""


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
