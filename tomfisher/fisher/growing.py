"""`GrowingStore`: a Fisher store that is written tensor by tensor, and goes on where a killed run stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tomfisher.files import sync, sync_handle, sync_names
from tomfisher.fisher import journal
from tomfisher.fisher.disk import check_space, lay_files, write_at
from tomfisher.fisher.journal import Journal, is_unfinished, unfinished_of
from tomfisher.fisher.shards import BLOCK, ITEM, SHARD_BYTES, Layout, Shard, lay_out, sha256_of_part
from tomfisher.fisher.store import check_target, recorded_digests, write_records
from tomfisher.locks import FILE as LOCK
from tomfisher.locks import locked
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.tensor_files import bytes_of

SHARDS = "store"  # in the unfinished folder: what becomes the store
REPLACED = "replaced"  # there: the store that stood at the path before, for the moment of the exchange


class GrowingStore:
    """A Fisher store on its way: every tensor is written once at its final place, and nothing is done twice.

    Equivalent to `write_store` of all tensors at the end, byte for byte, without ever holding more than one of them.
    Until it is finished it lies beside `path`, in `<path>.unfinished`. Killed at any moment and begun again with the
    same `run`, it is as it was at the last `commit`::

        with GrowingStore.begin(path, shapes, run) as store:
            for step in steps[len(store.done):]:
                store.write(name, F)
                store.commit(step, {"gradient": gradient})
            store.finish(facts)

    After an error in `write` or `commit` the object is of no use any more; begin again.
    """

    def __init__(self, path: Path, layout: Layout, state: Journal, lock: contextlib.ExitStack) -> None:
        self._path = path
        self._folder = unfinished_of(path)
        self._layout = layout
        self._journal = state
        self._lock = lock
        self._committed = {name: list(rows) for name, rows in state.rows.items()}
        self._digests: dict[str, tuple[int, Any]] = {}  # row that is hashed next, and the hash so far
        self._handles: dict[str, int] = {}  # of the shards that were written since the last commit
        self._failed = False

    @classmethod
    @plain_torch()
    def begin(
        cls,
        path: str | os.PathLike[str],
        shapes: Mapping[str, tuple[int, ...]],
        run: Mapping[str, Any],
        *,
        shard_bytes: int = SHARD_BYTES,
        spare: int = 0,
        anew: bool = False,
    ) -> GrowingStore:
        """Begin a store, or continue the unfinished one that the same run left.

        Args:
            path: where the finished store shall stand: free, or a store to be replaced at the end.
            shapes: of the float32 tensors, by name, in the order of the store.
            run: by what the run is known again: model, data and settings, as plain JSON values.
            shard_bytes: the largest shard, as of `write_store`.
            spare: bytes that have to be free beside the store, such as those of the carried tensors, twice.
            anew: forget an unfinished one.

        Raises:
            OSError: of `check_target`, or the disk is too small for the whole store.
            ValueError: another process is writing it, another run has begun it, or what it left is damaged.
        """
        path = Path(os.path.realpath(path))
        check_target(path)
        layout = lay_out(shapes, shard_bytes)
        wanted = Journal(
            json.loads(json.dumps(run)), {name: list(shapes[name]) for name in shapes}, shard_bytes
        )
        folder = unfinished_of(path)
        with contextlib.ExitStack() as stack:
            _refuse_strange(folder)
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder))
            journal.clear_temporaries(folder)
            if is_unfinished(path) and not anew:
                state = _continued(path, layout, wanted)
                check_space(folder / SHARDS, layout, spare)
            else:
                state = wanted
                with _taken_back(folder):
                    check_space(folder / SHARDS, layout, spare)
                    lay_files(folder / SHARDS, layout)
                    state.write(folder, {})
            return cls(path, layout, state, stack.pop_all())

    @property
    def done(self) -> list[str]:
        """The steps that are done, in order."""
        return list(self._journal.steps)

    @property
    def carried(self) -> dict[str, Tensor]:
        """The tensors of the last commit, read from the disk."""
        return Journal.read(self._folder)[1]

    @property
    def facts(self) -> dict[str, Any]:
        """What the steps so far found out, as given to `commit`."""
        return dict(self._journal.facts)

    @plain_torch()
    def write(self, name: str, tensor: Tensor, rows: slice | None = None) -> None:
        """Write a tensor, or some of its rows, at its place.

        Args:
            name: one of `shapes`.
            tensor: float32, on any device, of the tensor's shape or of that of the rows.
            rows: range of dimension 0; None is all. Best in order, each once: the checksum of any other way takes
                a second reading at the end.

        Raises:
            OSError: the disk is full or broken; what was committed is kept.
            TypeError: the tensor is not float32.
            ValueError: no such name, another shape, or rows that a finished step has written.
        """
        self._check_usable()
        start, stop = self._checked(name, tensor, rows)
        data = bytes_of(tensor.detach().cpu().contiguous())
        shape = self._journal.shapes[name]
        self._journal.sha256.pop(name, None)
        digest = self._digest_up_to(name, start)
        offset = self._shard(name).starts[name] + start * ITEM * math.prod(shape[1:])
        with self._kept():
            handle = self._handle(self._layout.weight_map[name])
            for first in range(0, len(data), BLOCK):
                block = data[first : first + BLOCK]
                write_at(handle, block, offset + first)
                if digest is not None:
                    digest.update(block)
        self._journal.add_rows(name, start, stop)
        if digest is not None and stop == _length(shape):
            self._journal.sha256[name] = digest.hexdigest()
        elif digest is not None:
            self._digests[name] = (stop, digest)

    def note_rows(self, name: str, start: int, stop: int) -> None:
        """Another process has written these rows at their place; they count with the next commit."""
        self._journal.sha256.pop(name, None)
        self._digests.pop(name, None)
        self._journal.add_rows(name, start, stop)

    @plain_torch()
    def commit(
        self, step: str, tensors: Mapping[str, Tensor] | None = None, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Make everything written so far durable: the step is done, and will not be done again.

        Args:
            step: its name.
            tensors: what the next step needs; they replace those of the commit before.
            facts: what the step found out, as plain JSON values; added to those of the steps before.

        Raises:
            OSError: the disk is full or broken; the commit before still holds.
            ValueError: the step is done already.
        """
        self._check_usable()
        if step in self._journal.steps:
            raise ValueError(
                f"Step {step!r} of {self._path} is done already. Go on after the last of `done`."
            )
        with self._kept():
            self._sync_shards()
            self._journal.steps.append(step)
            self._journal.facts.update(facts or {})
            self._journal.write(self._folder, dict(tensors or {}))
        self._committed = {name: list(rows) for name, rows in self._journal.rows.items()}

    @plain_torch()
    def finish(self, facts: Mapping[str, Any], digests: Mapping[str, str] | None = None) -> None:
        """Write index and record, and put the store at its path; the journal goes.

        Args:
            facts: what the record says of the tensors, as of `write_store`.
            digests: SHA-256 of tensors that other processes had a part in, which are else read.

        Raises:
            OSError: of `check_target`, or the disk is full or broken; nothing is lost.
            ValueError: tensors are not wholly written.
        """
        self._check_usable()
        if missing := [
            name for name, shape in self._journal.shapes.items() if not self._is_whole(name, shape)
        ]:
            raise ValueError(
                f"{self._path} cannot be finished: {len(missing)} of {len(self._journal.shapes)} tensors are not "
                f"wholly written, such as {missing[0]!r}. Write them first."
            )
        check_target(self._path)
        self._journal.sha256.update(digests or {})
        source = self._folder / SHARDS
        with self._kept():
            if source.exists():
                self._sync_shards()
                write_records(source, self._layout, facts, self._all_digests(source))
                sync(source)
                _exchange(source, self._path, self._folder / REPLACED)
            shutil.rmtree(self._folder / REPLACED, ignore_errors=True)
            (self._folder / journal.FILE).unlink()
            shutil.rmtree(self._folder)
        self.close()

    def abandon(self) -> None:
        """Forget what was begun, and let go of it."""
        shutil.rmtree(self._folder)
        self.close()

    def close(self) -> None:
        """Let go of the files and of the lock; what was committed stays."""
        self._failed = True
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()
        self._lock.close()

    def __enter__(self) -> GrowingStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._failed:
            raise ValueError(f"This store of {self._path} is closed. Begin it again to go on.")

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Close on any error, after which nobody knows what of the last writes is on the disk; say what is kept."""
        try:
            yield
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError):
                raise
            kept = f"what was done up to the last commit is kept in {self._folder}, and the same run goes on from there"
            if error.errno is None:
                raise OSError(f"{error}; {kept}") from error
            raise OSError(error.errno, f"{error.strerror}; {kept}", os.fspath(self._path)) from error

    def _checked(self, name: str, tensor: Tensor, rows: slice | None) -> tuple[int, int]:
        """The range of rows."""
        if name not in self._journal.shapes:
            raise ValueError(f"{self._path} has no tensor {name!r}. Begin it with the shapes of all tensors.")
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name!r} must be float32, got {tensor.dtype}.")
        shape = self._journal.shapes[name]
        if rows is not None and (not shape or rows.step not in (None, 1)):
            raise ValueError(f"rows of {name!r} of shape {tuple(shape)} must be a range, got {rows}.")
        start, stop, _ = (rows or slice(None)).indices(_length(shape))
        stop = max(start, stop)
        expected = (*((stop - start,) if shape else ()), *shape[1:])
        if tuple(tensor.shape) != expected:
            raise ValueError(
                f"{name!r} has the shape {tuple(shape)}, so rows {start} to {stop} have {expected}, got "
                f"{tuple(tensor.shape)}."
            )
        if any(first < stop and start < last for first, last in self._committed.get(name, [])):
            raise ValueError(
                f"Rows {start} to {stop} of {name!r} in {self._path} were written by a step that is done."
            )
        return start, stop

    def _digest_up_to(self, name: str, row: int) -> Any:
        """The hash of the rows before `row`, taken out; None where they were not written last and in order."""
        next_row, digest = self._digests.pop(name, (-1, None))
        if row == 0:
            return hashlib.sha256()
        return digest if next_row == row else None

    def _is_whole(self, name: str, shape: list[int]) -> bool:
        return math.prod(shape) == 0 or self._journal.rows.get(name) == [[0, _length(shape)]]

    def _shard(self, name: str) -> Shard:
        return self._layout.shards[self._layout.weight_map[name]]

    def _handle(self, file: str) -> int:
        if file not in self._handles:
            self._handles[file] = os.open(self._folder / SHARDS / file, os.O_WRONLY)
        return self._handles[file]

    def _sync_shards(self) -> None:
        for file in list(self._handles):
            sync_handle(self._handles[file])
            os.close(self._handles.pop(file))

    def _all_digests(self, folder: Path) -> dict[str, str]:
        """SHA-256 of every tensor; those that were not written from end to end in one go are read."""
        digests = dict(self._journal.sha256)
        for name, shape in self._journal.shapes.items():
            if name not in digests:
                shard = self._shard(name)
                digests[name] = sha256_of_part(
                    folder / shard.file, shard.starts[name], ITEM * math.prod(shape)
                )
        return digests


def _length(shape: list[int]) -> int:
    """Rows of a tensor; a number is one."""
    return shape[0] if shape else 1


def _refuse_strange(folder: Path) -> None:
    """Refuse an unfinished folder with anything in it that is not of our writing."""
    own = (SHARDS, REPLACED, journal.FILE, LOCK, f"{LOCK}.soft")
    names = sorted(file.name for file in folder.iterdir()) if folder.exists() else []
    if strange := [name for name in names if name not in own and not name.startswith(journal.TEMPORARY)]:
        raise FileExistsError(
            f"{folder} holds {strange[0]}, which is no part of an unfinished store, so it is left alone. Choose "
            "another path for the store, or move that elsewhere."
        )


def _continued(path: Path, layout: Layout, wanted: Journal) -> Journal:
    """The journal that the same run left, with its files as it left them."""
    folder = unfinished_of(path)
    state, _ = Journal.read(folder)
    if differing := state.differing(wanted):
        said = ", ".join(f"{key} ({_of(state, key)} there, {_of(wanted, key)} here)" for key in differing)
        raise ValueError(
            f"{folder} was begun by another run, which differs in {said}. Continue that one with its own settings, "
            "choose another path, or delete the folder to begin anew."
        )
    if (folder / SHARDS).exists():
        for shard in layout.shards.values():
            _check_file(folder / SHARDS / shard.file, shard)
    elif not state.sha256.items() <= recorded_digests(path).items():
        raise ValueError(f"{folder / SHARDS} is missing. Delete {folder}, and start the run again.")
    return state


def _of(state: Journal, key: str) -> str:
    if key == "parameters" and key not in state.run:
        return f"{len(state.shapes)} tensors"
    if key == "shard_bytes" and key not in state.run:
        return str(state.shard_bytes)
    return f"{state.run.get(key)!r:.80}"


def _check_file(file: Path, shard: Shard) -> None:
    again = f"Delete {file.parent.parent}, and start the run again."
    if not file.is_file():
        raise ValueError(f"{file} is missing. {again}")
    if file.stat().st_size != shard.size:
        raise ValueError(
            f"{file} has {file.stat().st_size} bytes, not the {shard.size} it was made with. {again}"
        )
    with file.open("rb") as handle:
        if handle.read(len(shard.header)) != shard.header:
            raise ValueError(f"The header of {file} is not the one it was made with. {again}")


@contextlib.contextmanager
def _taken_back(folder: Path) -> Iterator[None]:
    """Begin in an empty folder; on any error it goes."""
    shutil.rmtree(folder / SHARDS, ignore_errors=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _exchange(source: Path, target: Path, replaced: Path) -> None:
    """Rename a finished store to its path; what stands there goes to `replaced`, or comes back if that fails."""
    shutil.rmtree(replaced, ignore_errors=True)
    moved = target.exists()
    if moved:
        target.rename(replaced)
    try:
        source.rename(target)
    except BaseException:
        if moved:
            replaced.rename(target)
        raise
    sync_names(target.parent)
