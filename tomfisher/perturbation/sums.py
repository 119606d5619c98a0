"""Sums of weights, kept for as long as nobody writes to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from tomfisher.ops import weight_sums
from tomfisher.ops.dispatch import Impl
from tomfisher.perturbation.targets import Place, place_of


@dataclass(eq=False)
class Contents:
    """What a tensor holds from one write to the next.

    Attributes:
        since: the version at which it was first seen; None for an inference tensor, which counts no versions.
        sums: float64 `[2]`, a row of `weight_sums`; None until it is asked for.
    """

    since: int | None
    sums: Tensor | None = None


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

    # the reference to a storage keeps its identity, a part of the place, from being given to another one
    _seen: dict[Place, tuple[StorageWeakRef, int, Contents]] = field(default_factory=dict, repr=False)

    def of(self, tensors: Sequence[Tensor], impl: Impl = "auto") -> Tensor:
        """`weight_sums(tensors)`, reading only the tensors that are not known.

        Args:
            tensors: on one device, as for `weight_sums`; at least one.
            impl: implementation that reads.

        Returns:
            float64 `[n, 2]` on their device.
        """
        return complete(tensors, self.contents(tensors, list(map(place_of, tensors))), impl)

    def contents(self, tensors: Sequence[Tensor], places: Sequence[Place]) -> list[Contents]:
        """What tensors hold, given `place_of` each; new contents where one was written to since the last call."""
        found = zip(tensors, places, map(self._seen.get, places), map(version_of, tensors), strict=True)
        return [
            seen[2] if seen is not None and seen[1] == version else self._new(tensor, place, version)
            for tensor, place, seen, version in found
        ]

    def _new(self, tensor: Tensor, place: Place, version: int | None) -> Contents:
        contents = Contents(version)
        self.mark(tensor, place, contents)
        return contents

    def since(self, tensor: Tensor, place: Place) -> int | None:
        """The version at which what the tensor holds now was first seen; that of now if it is not known."""
        seen, version = self._seen.get(place), version_of(tensor)
        return seen[2].since if seen is not None and seen[1] == version else version

    def mark(self, tensor: Tensor, place: Place, contents: Contents) -> None:
        """Declare that the tensor holds these contents now."""
        version = version_of(tensor)
        if version is not None:
            seen = self._seen.get(place)
            storage = StorageWeakRef(tensor.untyped_storage()) if seen is None else seen[0]
            self._seen[place] = (storage, version, contents)

    def clear(self) -> None:
        """Forget everything: needed after a write that PyTorch's version counter did not see."""
        self._seen.clear()


def complete(tensors: Sequence[Tensor], contents: Sequence[Contents], impl: Impl = "auto") -> Tensor:
    """`weight_sums(tensors)` from their contents, reading those whose sums are not known."""
    unknown = [i for i, each in enumerate(contents) if each.sums is None]
    if unknown:
        rows = weight_sums([tensors[i] for i in unknown], impl=impl)
        for i, row in zip(unknown, rows, strict=True):
            contents[i].sums = row
    return torch.stack([each.sums for each in contents if each.sums is not None])


def version_of(tensor: Tensor) -> int | None:
    """PyTorch's count of in-place writes; None for an inference tensor, which has none and is never known."""
    try:
        return tensor._version
    except RuntimeError:  # an inference tensor
        return None
