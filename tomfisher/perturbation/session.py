"""`Perturbation`: masked weights are overwritten in place, with an exact way back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from operator import eq, is_
from types import TracebackType

import torch
from torch import Tensor, nn

from tomfisher.masks import SparseMask
from tomfisher.masks.store import some
from tomfisher.ops import weight_sums
from tomfisher.ops.dispatch import Impl, resolve
from tomfisher.perturbation import guard
from tomfisher.perturbation.entries import Changed, Entries, describe, put_back
from tomfisher.perturbation.fill import Fill, write_fill
from tomfisher.perturbation.guard import deferred_interrupt
from tomfisher.perturbation.sums import Contents, WeightSums, complete, version_of
from tomfisher.perturbation.targets import Memory, Target, lookup, named_tensors, place_of, resolve_targets
from tomfisher.runtime.torch_state import plain_torch


class Perturbation:
    """A sparse write that can be applied and undone; as a context manager it is applied inside the block.

    Made by `perturb`. The memory it takes is that of the masked entries, never a copy of a weight.

    Attributes:
        mask: the entries it writes.
        fill: what it writes.
        nnz: number of entries written; those of tied weights count once.
        implementations: which implementation of each operation runs, keyed like "scatter_@cpu".
    """

    def __init__(
        self,
        target: nn.Module | Mapping[str, Tensor],
        mask: SparseMask,
        fill: Fill,
        seed: int,
        compat: str | None,
        impl: Impl,
        sums: WeightSums | None,
    ) -> None:
        self.mask = mask
        self.fill = fill
        self._target = target
        self._seed = seed
        self._impl = impl
        self._sums = sums
        # how the names of the mask are looked up, what that gave, and where the tensors lie
        self._look: Callable[[], list[object]] = list
        self._found: list[object] = []
        self._memory = Memory([])
        self._entries: list[Entries] = []
        self._keys: frozenset[guard.Key] = frozenset()  # of the storages
        # while it is applied, by device: what the weights held before, and their versions right after the write
        self._before: list[list[Contents]] | None = None
        self._after: list[list[int | None]] = []
        self._find()
        self.nnz = sum(target.index.numel() for target in self._targets())
        self._by_mean = fill.kind == "mean" and compat is None
        self.implementations = {
            f"{op}@{entries.device.type}": name
            for entries in self._entries
            for op, name in self._used(entries).items()
        }
        self._let_go()

    def __repr__(self) -> str:
        state = "applied" if self.applied else "not applied"
        tensors = sum(count > 0 for count in self.mask.counts().values())
        return f"Perturbation(fill={str(self.fill)!r}, {self.nnz} entries in {tensors} tensors, {state})"

    @property
    def applied(self) -> bool:
        """Whether the weights are perturbed by this object now."""
        return self._before is not None

    def apply(self) -> Perturbation:
        """Write the fill: completely, or after an error or Ctrl-C on the way not at all.

        Returns:
            Itself.

        Raises:
            RuntimeError: it is applied already.
            TypeError: the model's tensors have become of an unsuitable kind since `perturb` was called.
            ValueError: a fill cannot be computed (NaN weights, a tensor masked entirely), or the model's
                tensors have become others.
        """
        self._refuse_twice()
        try:
            with plain_torch(), deferred_interrupt(), torch.inference_mode():
                self._write()
        except BaseException:
            if self.applied:  # a Ctrl-C that waited for the write
                self.undo()
            raise
        return self

    __enter__ = apply

    def _used(self, entries: Entries) -> dict[str, str]:
        """Operation to implementation."""
        if not self._by_mean:
            return {"scatter_": entries.implementations["scatter_"]}
        return {
            "weight_sums": resolve("weight_sums", self._impl, entries.device)[0],
            **entries.implementations,
        }

    def _refuse_twice(self) -> None:
        if self.applied:
            raise RuntimeError(f"{self} cannot be applied twice. Call undo() first.")

    def _find(self) -> None:
        """Look where the mask lands, unless every name still leads to the same tensor in the same memory."""
        if self._entries and self._unmoved():
            return
        by_kind: dict[tuple[torch.device, torch.dtype], list[Target]] = {}
        for target in resolve_targets(self._target, self.mask):
            by_kind.setdefault((target.view.device, target.view.dtype), []).append(target)
        self._entries = [Entries(targets, self._impl) for targets in by_kind.values()]
        self._look = lookup(self._target, list(self.mask))
        self._found = self._look()
        self._memory = Memory([each for each in self._found if isinstance(each, Tensor)])
        self._keys = frozenset(target.key for target in self._targets())

    def _unmoved(self) -> bool:
        """Whether every name still leads to the same tensor in the same memory."""
        found = self._look()
        return len(found) == len(self._found) and all(map(is_, found, self._found)) and self._memory.unmoved()

    def _targets(self) -> list[Target]:
        return [target for entries in self._entries for target in entries.targets]

    def _let_go(self) -> None:
        """Forget views, which would keep memory that the model replaces; its own tensors may be remembered."""
        if any(target.view is not target.weight for target in self._targets()):
            self._found, self._memory, self._entries = [], Memory([]), []

    def _write(self) -> None:
        self._find()
        before, fill = [self._contents(entries) for entries in self._entries], self._filling()
        try:
            for entries, contents in zip(self._entries, before, strict=True):
                write_fill(fill, entries, self._sums_of(entries, contents), self._seed)
            self._after = [list(map(version_of, entries.weights)) for entries in self._entries]
            guard.push(self, self._keys)
        except BaseException:
            for entries in self._entries:
                entries.restore()
            raise
        self._before = before

    def _filling(self) -> Fill:
        """What is written this time."""
        return self.fill

    def _contents(self, entries: Entries) -> list[Contents]:
        """What the tensors hold now, where sums are kept."""
        sums = self._sums
        return [] if sums is None else sums.contents(entries.weights, entries.places)

    def _sums_of(self, entries: Entries, contents: list[Contents]) -> Tensor | None:
        """What a mean of unmasked entries is taken from; None for other fills."""
        if not self._by_mean:
            return None
        if self._sums is None:
            return weight_sums(entries.weights, self._impl)
        if entries.contents != contents:
            entries.sums, entries.contents = complete(entries.weights, contents, self._impl), contents
        return entries.sums

    def undo(self) -> None:
        """Write the old values back, bit for bit, where still stands what was written. Ctrl-C waits until it is done.

        Raises:
            RuntimeError: it is not applied; or another perturbation of the same weights was applied later and
                must be undone first; or the weights were moved or converted in between, in which case nothing
                is written; or somebody else changed some of the entries: these are named and keep their values,
                all others are restored.
        """
        if others := self._undo():
            raise RuntimeError(describe(others, str(self)))

    def _undo(self) -> list[Changed]:
        """Restore, and give the entries that somebody else changed."""
        if self._before is None:
            raise RuntimeError(f"{self} cannot be undone: apply() it first.")
        if later := guard.above(self, self._keys):
            raise RuntimeError(f"{self} cannot be undone yet: undo {later[0]} first, it was applied later.")
        self._refuse_moved()
        with plain_torch(), deferred_interrupt(), torch.inference_mode():
            others = [each for entries in self._entries for each in entries.changed()]
            for entries, before, after in zip(self._entries, self._before, self._after, strict=True):
                self._restore(entries, before, after)
            guard.remove(self)
            self._before = None
            put_back(others, self._impl)
            self._let_go()
        return others

    def _restore(self, entries: Entries, before: list[Contents], after: list[int | None]) -> None:
        """Write the old values back; tensors to which nobody else wrote hold again what they held before."""
        sums = self._sums
        if sums is None:
            return entries.restore()
        now = list(map(sums.since, entries.weights, entries.places))
        entries.restore()
        marks = zip(entries.weights, entries.places, before, map(eq, now, after), strict=True)
        for weight, place, contents, own in marks:
            if own:
                sums.mark(weight, place, contents)

    def _refuse_moved(self) -> None:
        """Weights whose memory was replaced, as by `model.to(...)`, cannot be reached any more."""
        if self._unmoved():
            return
        named, places = named_tensors(self._target), dict(zip(self.mask, self._memory.places, strict=True))
        replaced, converted = [], []
        for name in (name for target in self._targets() for name in target.names):
            place, before = place_of(named[name]) if name in named else None, places[name]
            if place is None or place[:2] != before[:2]:
                replaced.append(name)
            elif place != before:
                converted.append(name)
        if replaced:
            raise RuntimeError(
                f"{self} cannot be undone: the memory of {some(replaced)} was replaced since it was applied, by "
                "model.to(...) for example. Undo before moving or converting a model; load this one again."
            )
        if converted:
            raise RuntimeError(
                f"{self} cannot be undone: {some(converted)} was given another dtype or layout since it was "
                "applied. Give it back its own first."
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        others: list[Changed] = []
        try:
            if self.applied:
                others = self._undo()
        except KeyboardInterrupt:  # it arrived before the write began
            if self.applied:
                self._undo()
            raise
        if others:
            message = describe(others, str(self))
            if error is None:
                raise RuntimeError(message)
            warnings.warn(message, stacklevel=2)  # the block's own error is the one to be seen
