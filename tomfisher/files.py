"""Writing that cannot leave a half-written result behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()


def _sync(path: Path) -> None:
    """Flush a file, or every file below a folder, to the disk."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def check_writable(path: str | os.PathLike[str], folder: bool = False) -> None:
    """Make sure, before any work, that a file or folder can be written; leaves nothing behind.

    Tries it: missing folders above `path` are made and a file without a name is opened there, then they are removed.

    Args:
        path: where something shall be written later.
        folder: it will be a folder; one that is there already must be writable itself.

    Raises:
        ValueError: a part of the path is a file where a folder has to be, or the other way round, or cannot be written.
    """
    target = Path(os.path.abspath(path))
    blocking = next((p for p in (target, *target.parents) if p.exists() and not p.is_dir()), None)
    if blocking is not None and (folder or blocking != target):
        shown = os.fspath(path) if blocking == target else os.path.relpath(blocking)
        shown = os.fspath(blocking) if shown.startswith("..") else shown
        raise ValueError(f"{shown} is a file, not a folder. Give another --output_path.")
    if target.is_dir() and not folder:
        raise ValueError(f"{os.fspath(path)} is a folder, not a file. Give another --output_path.")
    place = target if target.is_dir() else target.parent
    made = []
    try:
        for part in reversed((place, *place.parents)):
            if not part.is_dir():
                part.mkdir()
                made.append(part)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(
            f"{os.fspath(path)} cannot be written: {error.strerror} ({error.filename or place}). "
            "Give another --output_path."
        ) from error
    finally:
        for part in reversed(made):
            with contextlib.suppress(OSError):  # somebody else has put something there
                part.rmdir()


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `target`; rename it to `target` when the block ends without an error.

    The block may create a file or a folder under the temporary name. On any error, Ctrl-C included, the
    temporary is removed and whatever stood at `target` before is untouched.

    Args:
        target: where the finished file or folder shall stand; its parent folders are created.

    Yields:
        A path that does not exist yet, on the same file system as `target`.

    Raises:
        FileNotFoundError: the block ended without creating anything at the temporary name.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    temporary = target.with_name(f".{target.name}.{token}.tmp")
    try:
        yield temporary
        _sync(temporary)
        if temporary.is_dir() and target.exists():
            retired = target.with_name(f".{target.name}.{token}.old")
            target.rename(retired)
            try:
                temporary.rename(target)
            except BaseException:
                retired.rename(target)
                raise
            _remove(retired)
        else:
            temporary.replace(target)
    finally:
        _remove(temporary)


def write_tensors(tensors: dict[str, Tensor], path: str | os.PathLike[str], metadata: dict[str, str]) -> None:
    """`safetensors.torch.save_file`, whose own error of a full disk is no OSError.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, os.fspath(path), metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{os.fspath(path)} could not be written: {error}") from error


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_text(*texts: str) -> str:
    """SHA-256 of UTF-8 texts, each prefixed by its length so that boundaries count."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()
