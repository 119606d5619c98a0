"""The masked entries of a model: read, overwritten with the old values kept, and put back to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from tomfisher.ops import scatter_
from tomfisher.ops.dispatch import Impl
from tomfisher.ops.entries import entry_functions
from tomfisher.ops.masked_fill import NonFiniteMeanError, check_means, round_once
from tomfisher.perturbation.sums import Contents
from tomfisher.perturbation.targets import Target

_SHOWN = 3


@dataclass(frozen=True)
class Changed:
    """Entries of one tensor that no longer hold what was written.

    Attributes:
        label: what a message calls the tensor.
        weight: the tensor, of any strides.
        at: `[k]` int64, rising flat row-major positions of those entries alone.
        values: `[k]`, what stands there now.
    """

    label: str
    weight: Tensor
    at: Tensor
    values: Tensor


class Entries:
    """The masked entries of tensors of one dtype on one device.

    Masks are checked when they are made and targets when they are found, so the implementations of the operations
    are called without the operations' own checks.

    Args:
        targets: at least one.
        impl: implementation of the operations.

    Attributes:
        targets: the targets.
        weights: their tensors.
        places: of these.
        device: of all of them.
        implementations: which implementations of `scatter_` and `masked_fill_mean_` write, keyed by these.
        full: a target without an unmasked entry, and so without a mean, if there is one.
        contents: what the weights held when their sums were last asked for, where sums are kept.
        sums: of these contents, float64 `[n, 2]`.
    """

    def __init__(self, targets: Sequence[Target], impl: Impl) -> None:
        self.targets = list(targets)
        self.weights = [target.view for target in targets]
        self.places = [target.place for target in targets]
        self.full = next((each for each in targets if each.index.numel() == each.view.numel()), None)
        self._index = torch.cat([target.index for target in targets])
        self._counts = [target.index.numel() for target in targets]
        self._repeats = torch.tensor(self._counts)
        self._old = self.weights[0].new_empty(self._index.numel())
        self._written = self._old[:0]
        self._dirty = False  # whether there is something to restore
        self.contents: list[Contents] = []
        self.sums: Tensor | None = None
        self.device = self._index.device
        self._functions = entry_functions(impl, self.device)
        self.implementations = self._functions.implementations

    def read(self) -> Tensor:
        """What stands there now, one target after another, bit patterns unchanged."""
        return self._functions.gather(self.weights, self._index, self._counts)

    def write(self, values: Sequence[Tensor]) -> None:
        """Keep the old values and write others, `[k]` per target."""
        joined = torch.cat(list(values))
        self._old = self.read()
        self._dirty = True
        self._put(joined)
        self._written = joined

    def fill_mean(self, sums: Tensor) -> None:
        """Keep the old values and write the mean of each tensor's unmasked entries.

        Args:
            sums: float64 `[n, 2]`, `weight_sums(weights)`.

        Raises:
            NonFiniteMeanError: a tensor has no finite mean; nothing is written.
        """
        means = self._functions.fill(self.weights, self._index, self._counts, self._old, sums)
        self._dirty = True
        try:
            check_means(means)
        except NonFiniteMeanError:
            self._dirty = False
            raise
        increment_version(self.weights)
        written = round_once(means, self._old.dtype).repeat_interleave(self._repeats)
        self._written = written.to(self._old.device)

    def restore(self) -> None:
        """Write the old values back, bit for bit, if others were written, be it in part."""
        if self._dirty:
            self._put(self._old)
            self._dirty = False

    def _put(self, values: Tensor) -> None:
        self._functions.put(self.weights, self._index, self._counts, values)
        increment_version(self.weights)

    def split(self, values: Tensor) -> Sequence[Tensor]:
        """Of one target after another as of each target, `[k]`."""
        return values.split(self._counts)

    def changed(self) -> list[Changed]:
        """The entries that hold other bits than were written."""
        values = self.read()
        if torch.equal(values.view(torch.uint8), self._written.view(torch.uint8)):
            return []
        parts = zip(self.targets, self.split(values), self.split(self._written), strict=True)
        each = [changed(t.label, t.weight, t.positions(), value, then) for t, value, then in parts]
        return [one for one in each if one is not None]


def changed(label: str, weight: Tensor, at: Tensor, values: Tensor, written: Tensor) -> Changed | None:
    """The entries whose `values`, as they stand now, have other bits than what was written.

    Args:
        label: what a message calls the tensor.
        weight: the tensor, of any strides.
        at: `[k]` int64, flat row-major positions in it.
        values: `[k]`, what stands there now.
        written: `[k]`, what was written there.
    """
    other = (values.view(torch.uint8) != written.view(torch.uint8)).view(at.numel(), -1).any(1)
    if not bool(other.any()):
        return None
    at, order = at[other].sort()
    return Changed(label, weight.detach(), at, values[other][order])


def put_back(others: Sequence[Changed], impl: Impl) -> None:
    """Write the values of changed entries again, after everything was restored."""
    for each in others:
        scatter_([each.weight], [each.at], [each.values], impl=impl)


def describe(others: Sequence[Changed], what: str) -> str:
    """Which entries somebody else changed, in words."""
    count = sum(each.at.numel() for each in others)
    places = [
        f"{each.label} at {', '.join(map(str, each.at[:_SHOWN].tolist()))}"
        + (", ..." if each.at.numel() > _SHOWN else "")
        for each in others[:_SHOWN]
    ]
    more = f" and {len(others) - _SHOWN} more tensors" if len(others) > _SHOWN else ""
    return (
        f"{what}: somebody else changed {count} of its entries since they were written ({'; '.join(places)}{more}). "
        "They keep the values that they have now; all others hold again what they held before. Load the model again "
        "to have the original ones, and change weights before perturbing them or after the undo."
    )
