"""Room for a whole store on the disk, taken before the work begins."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

from tomfisher.files import UNSUPPORTED, sync_handle, sync_names
from tomfisher.fisher.shards import Layout

BLOCK_BYTES = 512  # what `st_blocks` counts
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_space(folder: Path, layout: Layout, spare: int) -> None:
    """Refuse, before the work, a disk without room for what is still to be written.

    Args:
        folder: of the shards, some of which may be there.
        layout: of the store.
        spare: bytes that are needed besides.

    Raises:
        OSError: ENOSPC, with the bytes that are needed and that are free.
    """
    files = [folder / file for file in layout.shards if (folder / file).exists()]
    there = sum(file.stat().st_blocks * BLOCK_BYTES for file in files)
    needed, free = max(layout.size - there, 0) + spare, shutil.disk_usage(folder.parent).free
    if needed > free:
        raise _too_small(folder, needed, free)


def lay_files(folder: Path, layout: Layout) -> None:
    """Make the folder, and in it every shard with its header and in its final size.

    Raises:
        OSError: there is no room for them.
    """
    folder.mkdir()
    for shard in layout.shards.values():
        with (folder / shard.file).open("wb") as file:
            try:
                _reserve(file.fileno(), shard.size)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                raise _too_small(folder, layout.size, shutil.disk_usage(folder).free) from error
            file.write(shard.header)
            file.flush()
            sync_handle(file.fileno())
    sync_names(folder)


def write_at(handle: int, data: memoryview, offset: int) -> None:
    """`os.pwrite` of all of `data`."""
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written


def _too_small(folder: Path, needed: int, free: int) -> OSError:
    reason = (
        f"the store needs {needed:,} bytes there, and {free:,} are free; make room or choose another path"
    )
    return OSError(errno.ENOSPC, reason, os.fspath(folder.parent))


def _reserve(handle: int, size: int) -> None:
    """Give a file its size and, where the file system can, its place on the disk.

    Not by `os.posix_fallocate`, which writes into every block where the file system cannot.
    """
    os.truncate(handle, size)
    allocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if allocate is None:
        return
    allocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while allocate(handle, 0, 0, size) != 0:
        code = ctypes.get_errno()
        if code in UNSUPPORTED:
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
