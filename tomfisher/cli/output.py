"""Standard output and error that can fail without costing a result."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TextIO, cast

GONE = (errno.EPIPE, errno.ECONNRESET)  # the reader of a pipe has seen enough


class Terminal:
    r"""Standard output and error of one command, for the time of a `with` block.

    Characters that a stream's encoding lacks are written as escapes (`\u4fe1`). A stream that cannot be written, for
    its reader has gone, its disk is full or it was never open, is given up: the work goes on, and what would have been
    printed there is dropped. `lost` says afterwards why standard output was given up.
    """

    def __enter__(self) -> Terminal:
        _occupy_standard_descriptors()
        self._before = sys.stdout, sys.stderr
        self._streams = _Stream(sys.stdout), _Stream(sys.stderr)
        sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in self._streams)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        sys.stdout, sys.stderr = self._before

    def flush(self) -> None:
        """Write out what is buffered."""
        for stream in self._streams:
            stream.flush()

    @property
    def lost(self) -> str | None:
        """Why something was not printed on standard output; None where all was, or its reader went away."""
        error = self._streams[0].error
        if error is None or getattr(error, "errno", None) in GONE:
            return None
        return getattr(error, "strerror", None) or str(error)


class _Stream:
    """A text stream that keeps its first error to itself and drops everything after it."""

    def __init__(self, stream: TextIO | None) -> None:
        self._never_open = stream is None
        self._stream = io.StringIO() if stream is None else stream
        self.error: Exception | None = None
        with contextlib.suppress(AttributeError, OSError, ValueError):  # a stand-in of a test or a notebook
            cast(Any, self._stream).reconfigure(errors="backslashreplace")
            os.set_blocking(self._stream.fileno(), True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop."""
        if self.error is None and text:
            try:
                if self._never_open:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._give_up(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write, or drop, each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or drop."""
        if self.error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        """Whether a terminal shows what is written."""
        try:
            return self.error is None and self._stream.isatty()
        except ValueError:  # closed
            return False

    def _give_up(self, error: Exception) -> None:
        """Keep the error; what is buffered still goes nowhere, so that Python does not fail on it at its end."""
        self.error = error
        with contextlib.suppress(AttributeError, OSError, ValueError):
            descriptor, null = self._stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


def _occupy_standard_descriptors() -> None:
    """Open the null device where 0, 1 or 2 is closed, so that no result file gets that number and others' prints."""
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:
        null = os.open(os.devnull, os.O_RDWR)
    os.close(null)
