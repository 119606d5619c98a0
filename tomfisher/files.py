"""Writing that cannot leave a half-written result behind."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NAME_KEPT = 100  # bytes of a name that stand in a temporary's, of which file systems allow 143 or more
UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()


def sync(path: Path) -> None:
    """Flush a file, or every file below a folder, to the disk."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as handle:
                sync_handle(handle.fileno())


def sync_handle(handle: int) -> None:
    """`os.fsync` of an open file or folder; file systems that cannot do so on demand are let be."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_names(folder: str | os.PathLike[str]) -> None:
    """Flush which files a folder holds, by which names, to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        sync_handle(handle)
    finally:
        os.close(handle)


def _followed(path: str | os.PathLike[str]) -> Path:
    """The path itself, or where it leads if it is a symbolic link: the link stays, what it names is written."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


def _beside(target: Path, token: str, suffix: str) -> Path:
    """A hidden name in the folder of `target`, never too long where `target` itself is not."""
    name = os.fsdecode(os.fsencode(target.name)[:NAME_KEPT]).encode(errors="ignore").decode()
    return target.with_name(f".{name}.{token}.{suffix}")


def check_writable(path: str | os.PathLike[str], folder: bool = False, replaced: bool = False) -> None:
    """Make sure, before any work, that a file or folder can be written; leaves nothing behind.

    Does what `atomic_path` will do: missing folders above `path` are made, something is written under a temporary name
    there and renamed to `path`, then all of it is removed. What stands at `path` already is not touched.

    Args:
        path: where something shall be written later.
        folder: it will be a folder; one that is there already must be writable itself.
        replaced: a folder that is there already will be replaced as a whole, not written into.

    Raises:
        ValueError: a part of the path is a file where a folder has to be, or the other way round, or cannot be written.
    """
    shown = os.fspath(path)
    if not shown.strip():
        raise ValueError("--output_path is empty. Give the path to write to.")
    target = Path(os.path.abspath(_followed(path)))
    _refuse_kind(shown, target, folder)
    if not folder and shown.endswith(os.sep):
        raise ValueError(f"{shown} names a folder, but a file is written. Give another --output_path.")
    inside = folder and not replaced and os.path.isdir(target)
    place = target if inside else target.parent
    made: list[Path] = []
    try:
        for part in reversed((place, *place.parents)):
            if not part.is_dir():
                part.mkdir()
                made.append(part)
        _rehearse(target / ("x" * NAME_KEPT) if inside else target, folder and not inside)
    except OSError as error:
        raise ValueError(
            f"{shown} cannot be written: {error.strerror or error} ({error.filename or place}). "
            "Give another --output_path."
        ) from error
    finally:
        for part in reversed(made):
            with contextlib.suppress(OSError):  # somebody else has put something there
                part.rmdir()


def refuse_existing(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse to write over something unless told to.

    Raises:
        ValueError: it exists and `overwrite` is off.
    """
    if os.path.lexists(path) and not overwrite:
        raise ValueError(
            f"{os.fspath(path)} exists. Give another --output_path, or --overwrite to replace it."
        )


def refuse_foreign(path: str | os.PathLike[str], marker: str, own: Callable[[str], bool], what: str) -> None:
    """Refuse to replace a folder that is not wholly of one's own writing.

    Args:
        path: where a folder shall be put; nothing has to be there.
        marker: the file by which a folder of this kind is known.
        own: whether a name in such a folder is one that is written there.
        what: the kind in words, such as "Fisher store".

    Raises:
        FileExistsError: there is something of another kind, or other files lie in it.
    """
    path = Path(path)
    if not path.exists():
        return
    if not (path / marker).is_file():
        raise FileExistsError(
            f"{path} exists and is not a {what}, so it is left alone. Choose another path, or remove it."
        )
    if foreign := sorted(file.name for file in path.iterdir() if not own(file.name)):
        raise FileExistsError(
            f"The {what} {path} holds {foreign[0]} too, which is not part of it, so it is left alone. Choose another "
            "path, or move that elsewhere."
        )


def _refuse_kind(shown: str, target: Path, folder: bool) -> None:
    """Refuse a path with a file where a folder has to be, or with what is neither file nor folder at its end."""
    if os.path.exists(shown) and not os.path.isfile(shown) and not os.path.isdir(shown):
        raise ValueError(
            f"{shown} is a device or a pipe, which cannot be replaced by a finished file. Give another --output_path."
        )
    blocking = next(
        (p for p in (target, *target.parents) if os.path.exists(p) and not os.path.isdir(p)), None
    )
    if blocking is not None and (folder or blocking != target):
        named = shown if blocking == target else os.path.relpath(blocking)
        named = os.fspath(blocking) if named.startswith("..") else named
        raise ValueError(f"{named} is a file, not a folder. Give another --output_path.")
    if not folder and os.path.isdir(target):
        raise ValueError(f"{shown} is a folder, not a file. Give another --output_path.")


def _rehearse(target: Path, folder: bool) -> None:
    """Write a temporary beside `target`, rename it there if the place is free, and remove it.

    Raises:
        OSError: one of the steps fails, or would fail with what stands at `target`.
    """
    token = uuid.uuid4().hex[:8]
    temporary, moved = _beside(target, token, "tmp"), _beside(target, token, "old")
    try:
        if folder:
            temporary.mkdir()
        (temporary / "x" if folder else temporary).write_bytes(bytes(4096))
        sync(temporary)
        if os.path.lexists(target):
            _refuse_fixed(target)
        else:
            if folder:
                target.mkdir()
            else:
                target.touch(exist_ok=False)
            moved = target
        temporary.replace(moved)
    finally:
        for path in (temporary, moved):  # both are ours
            with contextlib.suppress(OSError):
                _remove(path)


def _refuse_fixed(target: Path) -> None:
    """Raise where a rename over `target` would fail although its folder can be written."""
    if os.path.ismount(target):
        raise OSError(errno.EBUSY, "it is a mount point, which cannot be replaced", os.fspath(target))
    parent = target.parent.stat()
    owners = (0, parent.st_uid, target.lstat().st_uid)
    if parent.st_mode & stat.S_ISVTX and os.geteuid() not in owners:
        raise PermissionError(errno.EPERM, "it is another user's, in a shared folder", os.fspath(target))


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `target`; rename it to `target` when the block ends without an error.

    The block may create a file or a folder under the temporary name. On any error in it, Ctrl-C included, the
    temporary is removed and whatever stood at `target` before is untouched. If only the rename fails, the finished
    temporary is kept, and the error says where. A symbolic link stays, and what it names is written.

    Args:
        target: where the finished file or folder shall stand; its parent folders are created.

    Yields:
        A path that does not exist yet, on the same file system as `target`.

    Raises:
        FileNotFoundError: the block ended without creating anything at the temporary name.
        OSError: the finished temporary cannot be renamed.
    """
    target = _followed(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    temporary = _beside(target, token, "tmp")
    try:
        yield temporary
        sync(temporary)
    except BaseException:
        _remove(temporary)
        raise
    if not os.path.lexists(temporary):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(temporary))
    try:
        _put(temporary, target, _beside(target, token, "old"))
    except OSError as error:
        reason = f"{error.strerror or error}; the finished result is kept in {temporary}"
        raise OSError(error.errno, reason, os.fspath(target)) from error


def _put(temporary: Path, target: Path, retired: Path) -> None:
    """Rename to `target`; a folder first retires what is there, which comes back if that fails."""
    if not (temporary.is_dir() and target.exists()):
        temporary.replace(target)
        return
    target.rename(retired)
    try:
        temporary.rename(target)
    except BaseException:
        retired.rename(target)
        raise
    try:
        _remove(retired)
    except OSError as error:
        warnings.warn(
            f"{target} is written, but what stood there before is left in {retired}: {error}", stacklevel=4
        )


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
