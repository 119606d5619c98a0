"""Writing that cannot leave a half-written result behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
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
