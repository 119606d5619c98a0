"""A change of a few weights: entries with old and new values, in a model or in a small file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.finetune import delta_file
from tomfisher.finetune.entries import Entry, find_entries, write
from tomfisher.masks import SparseMask
from tomfisher.ops.dispatch import Impl
from tomfisher.perturbation import guard
from tomfisher.perturbation.entries import Changed, changed, describe, put_back
from tomfisher.perturbation.guard import deferred_interrupt
from tomfisher.perturbation.targets import named_tensors
from tomfisher.runtime.torch_state import plain_torch

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Delta:
    """Entries of named tensors with their values before and after a training.

    Args:
        shapes: shape of every tensor.
        indices: per tensor `[k]` int64, strictly rising flat row-major positions.
        old: per tensor `[k]`, in the weight's dtype: what stood there before.
        new: per tensor `[k]`, same dtype, finite: what was learned.
        metadata: JSON-like facts about where it comes from.

    Raises:
        TypeError: positions are not int64, or values are of no dtype that weights have.
        ValueError: names or lengths differ, positions are unsorted, repeated or out of range, or a new value is
            not finite.
    """

    shapes: Mapping[str, tuple[int, ...]]
    indices: Mapping[str, Tensor]
    old: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = (self.shapes, self.indices, self.old, self.new)
        if any(set(part) != set(self.shapes) for part in parts):
            raise ValueError("A delta's shapes, indices, old and new values must name the same tensors.")
        self.mask()
        for name, index in self.indices.items():
            _check_values(name, index, self.old[name], self.new[name])

    def __repr__(self) -> str:
        return f"Delta({self.nnz} entries in {len(self.shapes)} tensors)"

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return sum(index.numel() for index in self.indices.values())

    def mask(self) -> SparseMask:
        """The entries as a mask."""
        return SparseMask(self.indices, self.shapes, parents=["delta"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, all or nothing."""
        delta_file.write(path, self.shapes, self.indices, self.old, self.new, self.metadata)

    @classmethod
    @plain_torch()
    def load(cls, path: str | os.PathLike[str]) -> Delta:
        """Read a file that `save` wrote, and check it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no delta, was written by a newer version, or is damaged.
        """
        tensors, header = delta_file.read(path)
        try:
            shapes = {name: tuple(map(int, shape)) for name, shape in header["shapes"].items()}
            index, old, new = (
                {name: tensors.pop(f"{part}:{name}") for name in shapes} for part in delta_file.PARTS
            )
            if tensors:
                raise ValueError(f"it holds tensors of no use, such as {next(iter(tensors))!r}.")
            return cls(shapes, index, old, new, dict(header["metadata"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{os.fspath(path)} is damaged: {error} Train again.") from error


class AppliedDelta:
    """A delta that stands in a model; as a context manager it is undone at the end of the block.

    Attributes:
        delta: what was written.
        applied: whether it is in the model now.
    """

    def __init__(
        self, model: nn.Module, delta: Delta, impl: Impl, entries: Sequence[Entry], old: Sequence[Tensor]
    ) -> None:
        self.delta = delta
        self.applied = True
        self._model = model
        self._impl: Impl = impl
        self._entries = list(entries)
        self._old = list(old)
        self._keys = {entry.key for entry in entries}
        guard.push(self, self._keys)

    def __repr__(self) -> str:
        return f"AppliedDelta({self.delta.nnz} entries, {'applied' if self.applied else 'undone'})"

    def undo(self) -> None:
        """Write the values from before back, bit for bit, where the new ones still stand. Ctrl-C waits.

        Raises:
            RuntimeError: it was undone already; a later change of the same weights must be undone first; or the
                weights were moved or converted since, in which case nothing is written; or somebody else changed some
                of the entries: these are named and keep their values, all others are restored.
        """
        if found := self._undo():
            raise RuntimeError(describe(found, str(self)))

    @plain_torch()
    def _undo(self) -> list[Changed]:
        """Restore, and give the entries that somebody else changed."""
        if not self.applied:
            raise RuntimeError(f"{self} cannot be undone twice.")
        if later := guard.above(self, self._keys):
            raise RuntimeError(f"{self} cannot be undone yet: undo {later[0]} first, it was applied later.")
        self._refuse_moved()
        with deferred_interrupt():
            found = self._changed()
            write(self._entries, self._old, self._impl)
            put_back(found, self._impl)
            guard.remove(self)
            self.applied = False
        return found

    def _changed(self) -> list[Changed]:
        """Entries that do not hold the new values."""
        pairs = zip(self._entries, _new_values(self.delta, self._entries), strict=True)
        each = [changed(e.name, e.weight, e.index, e.read(), new.view(torch.uint8)) for e, new in pairs]
        return [one for one in each if one is not None]

    @plain_torch()
    def reapply(self) -> None:
        """Write the new values again, after `undo`.

        Raises:
            RuntimeError: it is applied, or the weights were moved or converted since.
        """
        if self.applied:
            raise RuntimeError(f"{self} cannot be applied twice. Call undo() first.")
        self._refuse_moved()
        with deferred_interrupt():
            write(self._entries, _new_values(self.delta, self._entries), self._impl)
            guard.push(self, self._keys)
            self.applied = True

    def _refuse_moved(self) -> None:
        named = named_tensors(self._model)
        for entry in self._entries:
            now = named.get(entry.name)
            if now is None or now.data_ptr() != entry.weight.data_ptr() or now.dtype != entry.weight.dtype:
                raise RuntimeError(
                    f"{self}: the memory of {entry.name} was replaced since, by model.to(...) for example. "
                    "Undo before moving or converting a model; load this one again."
                )

    def __enter__(self) -> AppliedDelta:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.applied and (found := self._undo()):
            said = describe(found, str(self))
            if error is None:
                raise RuntimeError(said)
            warnings.warn(said, stacklevel=2)  # the block's own error is the one to be seen


@plain_torch()
def apply(model: nn.Module, delta: Delta, check: bool = True, impl: Impl = "auto") -> AppliedDelta:
    """Write a delta's new values into a model.

    Example::

        with tomfisher.finetune.apply(model, Delta.load("delta.safetensors")):   # undone at the end of the block
            ...

    Args:
        model: of the same tensors, in the dtype that was trained.
        delta: what to write.
        check: refuse a model whose entries do not hold the delta's old values, bit for bit.
        impl: implementation of the write.

    Returns:
        The applied delta; `undo()` writes back what was found.

    Raises:
        TypeError: a weight is quantised, of an integer dtype, or distributed.
        ValueError: the delta is of another model, another dtype, or (`check`) of other values.
    """
    entries = find_entries(model, delta.mask())
    old = [entry.read() for entry in entries]
    for entry, found in zip(entries, old, strict=True):
        expected = delta.old[entry.name]
        if expected.dtype != found.dtype:
            raise ValueError(
                f"{entry.name} is {found.dtype} here, the delta was trained in {expected.dtype}. "
                "Load the model in that dtype."
            )
        differing = int((_bits(found.cpu()) != _bits(expected)).sum())
        if check and differing:
            raise ValueError(
                f"{differing} of {found.numel()} entries of {entry.name} do not hold the values that the training "
                "began with: the delta is of other weights. Load the model it was trained from, or pass check=False."
            )
    with deferred_interrupt():
        write(entries, _new_values(delta, entries), impl)
        return AppliedDelta(model, delta, impl, entries, old)


def _new_values(delta: Delta, entries: Sequence[Entry]) -> list[Tensor]:
    return [delta.new[entry.name].to(entry.weight.device) for entry in entries]


def _bits(values: Tensor) -> Tensor:
    return values.view(_BITS[values.element_size()])


def _check_values(name: str, index: Tensor, old: Tensor, new: Tensor) -> None:
    if old.dtype not in _DTYPES or new.dtype != old.dtype:
        raise TypeError(
            f"Values of {name!r} must be of one floating-point dtype, got {old.dtype}, {new.dtype}."
        )
    if not old.shape == new.shape == index.shape:
        raise ValueError(
            f"Values of {name!r} must be vectors of {index.numel()} numbers, one per position, got shapes "
            f"{tuple(old.shape)} and {tuple(new.shape)}."
        )
    if not bool(new.isfinite().all()):
        raise ValueError(f"New values of {name!r} must be finite.")
