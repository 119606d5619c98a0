"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

FILE = ".lock"


@contextlib.contextmanager
def locked(
    folder: str | os.PathLike[str], file: str | os.PathLike[str] | None = None, wait: bool = False
) -> Iterator[None]:
    """Hold an exclusive lock on a folder.

    Where the file system has no locks (some network ones), a second file beside the first, `*.soft`, stands for one
    as long as it exists.

    Args:
        folder: what is locked.
        file: the file that carries the lock and stays; None is `.lock` in the folder, which then exists.
        wait: until another process lets go of it, instead of refusing.

    Raises:
        ValueError: another process holds it.
    """
    path = Path(folder)
    carrier = Path(file or path / FILE)
    try:
        lock = _acquired(carrier, -1 if wait else 0)
    except Timeout as error:
        left = "" if error.lock_file == str(carrier) else f", or delete {error.lock_file} if there is none"
        raise ValueError(
            f"Another tomfisher process is working in {path}. Wait for it{left}, or give another --output_path."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _acquired(carrier: Path, timeout: float) -> BaseFileLock:
    try:
        lock: BaseFileLock = FileLock(carrier, timeout=timeout)
        lock.acquire()
    except Timeout:
        raise
    except (OSError, NotImplementedError):  # no locks here
        lock = SoftFileLock(f"{carrier}.soft", timeout=timeout)
        lock.acquire()
    return lock
