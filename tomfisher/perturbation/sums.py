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


@dataclass(eq=False)
class State:
    """The bits of a tensor at some time: compared by identity, and what is known about them.

    Attributes:
        sums: float64 `[2]`, a row of `weight_sums`; None until it is asked for.
    """

    sums: Tensor | None = None


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
    Writes that the counter does not see are not noticed: through `tensor.data`, through a numpy array or another
    view of the memory from outside PyTorch. Call `clear()` after such a write.
    """

    _seen: dict[_Key, _Seen] = field(default_factory=dict, repr=False)

    def of(self, tensors: Sequence[Tensor], impl: Impl = "auto") -> Tensor:
        """`weight_sums(tensors)`, reading only the tensors that are not known.

        Args:
            tensors: on one device, as for `weight_sums`; at least one.
            impl: implementation that reads.

        Returns:
            float64 `[n, 2]` on their device.
        """
        states = [self.state(tensor) for tensor in tensors]
        unknown = [i for i, state in enumerate(states) if state.sums is None]
        rows = weight_sums([tensors[i] for i in unknown], impl=impl)
        for i, row in zip(unknown, rows, strict=True):
            states[i].sums = row
        return torch.stack([state.sums for state in states if state.sums is not None])

    def state(self, tensor: Tensor) -> State:
        """The state that the tensor is in; a new one if it was written to since the last call."""
        seen = self._seen.get(_key(tensor))
        version = _version(tensor)
        if seen is None or seen.version != version or seen.storage.expired():
            return self.mark(tensor, State())
        return seen.state

    def mark(self, tensor: Tensor, state: State) -> State:
        """Declare that the tensor is in this state now, and return it."""
        version = _version(tensor)
        if version is not None:
            self._seen[_key(tensor)] = _Seen(StorageWeakRef(tensor.untyped_storage()), version, state)
        return state

    def clear(self) -> None:
        """Forget everything: needed after a write that PyTorch's version counter did not see."""
        self._seen.clear()


def _key(tensor: Tensor) -> _Key:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _version(tensor: Tensor) -> int | None:
    """PyTorch's count of in-place writes; None for inference tensors, which have none and are never known."""
    return None if tensor.is_inference() else tensor._version
