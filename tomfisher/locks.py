"""One process at a time in a folder, wherever the file system has locks."""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"
HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def locked(
    folder: str | os.PathLike[str], file: str | os.PathLike[str] | None = None, wait: bool = False
) -> Iterator[None]:
    """Hold an exclusive lock on a folder; where there are no file locks (some network file systems), warn and go on.

    Args:
        folder: what is locked.
        file: the file that carries the lock and stays; None is `.lock` in the folder, which then exists.
        wait: until another process lets go of it, instead of refusing.

    Raises:
        ValueError: another process holds it.
    """
    path = Path(folder)
    with Path(file or path / FILE).open("w") as handle:
        if (lacking := _lock(handle, path, wait)) is not None:
            warnings.warn(
                f"{path} cannot be locked ({lacking}). Make sure that no other tomfisher process works in it.",
                stacklevel=3,
            )
        yield


def _lock(handle: TextIO, path: Path, wait: bool) -> str | None:
    """Lock the file, or say why there are no locks here."""
    if fcntl is None:
        return "this system has no fcntl"
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in HELD and not wait:
            raise ValueError(
                f"Another tomfisher process is working in {path}. Wait for it, or give another --output_path."
            ) from None
        return error.strerror or str(error)
    return None
