"""Sums of weights, kept for as long as nobody writes to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from tomfisher.ops import weight_sums
from tomfisher.ops.dispatch import Impl

_Key = tuple[torch.device, int, torch.dtype, torch.Size, tuple[int, ...]]

_Place = tuple[_Key, StorageWeakRef]
_freed = (
    torch.UntypedStorage._expired
)  # what StorageWeakRef.expired calls, on every reference at a tenth of the cost


@dataclass(eq=False)
class State:
    """The bits of a tensor at some time: compared by identity, and what is known about them.

    Attributes:
        sums: float64 `[2]`, a row of `weight_sums`; None until it is asked for.
    """

    sums: Tensor | None = None


class Group:
    """Tensors that are looked up together again and again: what does not change is taken once.

    Args:
        tensors: on one device.

    Attributes:
        tensors: the tensors, or others that share their memory and version counters.
        places: key and storage of each.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self._counted = not any(tensor.is_inference() for tensor in tensors)
        self.places = [_place(tensor) for tensor in tensors]
        self._references = [storage.cdata for _, storage in self.places]

    def versions(self) -> list[int] | None:
        """PyTorch's counts of in-place writes; None if an inference tensor, which has none, is among them."""
        return [tensor._version for tensor in self.tensors] if self._counted else None

    def gone(self) -> list[bool]:
        """Which tensors' memory was freed since."""
        return [storage.expired() for _, storage in self.places]

    def complete(self) -> bool:
        """Whether no tensor's memory was freed."""
        return not any(map(_freed, self._references))


class States:
    """The states of a group's tensors at some time, made when they are first looked at.

    Attributes:
        sums: float64 `[n, 2]`, once they were asked for.
    """

    def __init__(self, count: int, each: list[State] | None = None) -> None:
        self.sums: Tensor | None = None
        self._count = count
        self._each = each

    @property
    def each(self) -> list[State]:
        """One state per tensor."""
        if self._each is None:
            self._each = [State() for _ in range(self._count)]
        return self._each


@dataclass(frozen=True)
class _Mark:
    """That the tensors at these places, at these versions, are in these states."""

    places: list[_Place]
    versions: list[int]
    states: States


@dataclass(frozen=True)
class _Seen:
    storage: StorageWeakRef
    version: int
    state: State


@dataclass
class WeightSums:
    """Sums of the weights of one or more models, read once and reused by every mean fill that is given them.

    Example::

        sums = WeightSums()
        for mask in masks:
            with tomfisher.perturb(model, mask, sums=sums):   # reads all weights the first time only
                ...

    A sum holds as long as its tensor has the same memory and PyTorch's version counter stands still, which every
    in-place operation moves; a perturbation that undoes its own write makes the sum from before hold again.
    Writes that the counter does not see are not noticed: by fused optimizers, through `tensor.data`, through a numpy
    array or another view of the memory from outside PyTorch. It belongs to a sweep in which nobody trains; call
    `clear()` after such a write.
    """

    _seen: dict[_Key, _Seen] = field(default_factory=dict, repr=False)
    # the last mark of a group, not entered into `_seen` before anybody else looks
    _last: _Mark | None = field(default=None, repr=False)

    def of(self, tensors: Sequence[Tensor], impl: Impl = "auto") -> Tensor:
        """`weight_sums(tensors)`, reading only the tensors that are not known.

        Args:
            tensors: on one device, as for `weight_sums`; at least one.
            impl: implementation that reads.

        Returns:
            float64 `[n, 2]` on their device.
        """
        return self._complete(tensors, [self.state(tensor) for tensor in tensors], impl)

    def of_group(self, group: Group, states: States, impl: Impl = "auto") -> Tensor:
        """`of(group.tensors)` for tensors that are in `states` now."""
        if states.sums is None:
            states.sums = self._complete(group.tensors, states.each, impl)
        return states.sums

    def _complete(self, tensors: Sequence[Tensor], states: list[State], impl: Impl) -> Tensor:
        """Rows of all states; the tensors of those without one are read."""
        unknown = [i for i, state in enumerate(states) if state.sums is None]
        rows = weight_sums([tensors[i] for i in unknown], impl=impl)
        for i, row in zip(unknown, rows, strict=True):
            states[i].sums = row
        return torch.stack([state.sums for state in states if state.sums is not None])

    def state(self, tensor: Tensor) -> State:
        """The state that the tensor is in; a new one if it was written to since the last call."""
        return self._state(_place(tensor), _version(tensor))

    def _state(self, place: _Place, version: int | None) -> State:
        self._settle()
        seen = self._seen.get(place[0])
        if seen is None or seen.version != version or seen.storage.expired():
            return self._mark(place, version, State())
        return seen.state

    def states(self, group: Group) -> States:
        """`state` of every tensor of a group; cheap if nothing else was asked or written since `mark_group`."""
        last = self._last
        if last is not None and last.places is group.places and last.versions == group.versions():
            return last.states
        found = zip(group.places, group.tensors, strict=True)
        return States(len(group.tensors), [self._state(place, _version(tensor)) for place, tensor in found])

    def mark(self, tensor: Tensor, state: State) -> State:
        """Declare that the tensor is in this state now, and return it."""
        return self._mark(_place(tensor), _version(tensor), state)

    def _mark(self, place: _Place, version: int | None, state: State) -> State:
        self._settle()
        if version is not None:
            self._seen[place[0]] = _Seen(place[1], version, state)
        return state

    def mark_group(self, group: Group, states: States) -> None:
        """`mark` every tensor of a group."""
        if self._last is not None and self._last.places is not group.places:
            self._settle()
        versions = group.versions()
        if versions is not None:
            self._last = _Mark(group.places, versions, states)
            return
        for place, tensor, state in zip(group.places, group.tensors, states.each, strict=True):
            self._mark(place, _version(tensor), state)

    def recall(self, group: Group, now: States, before: States, after: States) -> None:
        """Declare that every tensor that is in its state `after` now has the bits of its state `before` again.

        Args:
            group: its tensors were written to just now, to undo an earlier write.
            now: the states until then.
            before: the states before the earlier write.
            after: the states after it.
        """
        if now is after:
            self.mark_group(group, before)
            return
        each = zip(group.places, group.tensors, now.each, before.each, after.each, strict=True)
        for place, tensor, current, old, written in each:
            if current is written:
                self._mark(place, _version(tensor), old)

    def _settle(self) -> None:
        if self._last is not None:
            last, self._last = self._last, None
            found = zip(last.places, last.versions, last.states.each, strict=True)
            self._seen.update(
                {key: _Seen(storage, version, state) for (key, storage), version, state in found}
            )

    def clear(self) -> None:
        """Forget everything: needed after a write that PyTorch's version counter did not see."""
        self._last = None
        self._seen.clear()


def _place(tensor: Tensor) -> _Place:
    return _key(tensor), StorageWeakRef(tensor.untyped_storage())


def _key(tensor: Tensor) -> _Key:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _version(tensor: Tensor) -> int | None:
    """PyTorch's count of in-place writes; None for inference tensors, which have none and are never known."""
    return None if tensor.is_inference() else tensor._version
