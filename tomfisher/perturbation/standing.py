"""What stands in masked entries, compared to the bit with what was written there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tomfisher.ops import scatter_
from tomfisher.ops.dispatch import Impl

_SHOWN = 3


class Entries(NamedTuple):
    """Masked entries of one piece of memory.

    Attributes:
        label: what a message calls the tensor.
        weight: the tensor, of any strides.
        at: `[k]` int64, flat row-major positions, on its device.
    """

    label: str
    weight: Tensor
    at: Tensor


class Changed(NamedTuple):
    """Entries of one tensor that no longer hold what was written.

    Attributes:
        entries: those entries alone.
        values: `[k]`, what stands there now.
    """

    entries: Entries
    values: Tensor


def standing(entries: Sequence[Entries]) -> Tensor:
    """The bytes of the entries, one after another.

    Args:
        entries: at least one, on one device.

    Returns:
        uint8 `[sum of k times the size of an entry]` on that device.
    """
    parts = [each.weight.take(each.at) for each in entries]
    if len({part.dtype for part in parts}) > 1:  # cat would convert them
        parts = [part.view(torch.uint8) for part in parts]
    return torch.cat(parts).view(torch.uint8)


def changed(entries: Sequence[Entries], written: Tensor) -> list[Changed]:
    """The entries that hold other bits than `written`, their `standing` right after the write; costs one reading."""
    now = standing(entries)
    if torch.equal(now, written):
        return []
    found = []
    sizes = [each.at.numel() * each.weight.element_size() for each in entries]
    for each, here, then in zip(entries, now.split(sizes), written.split(sizes), strict=True):
        other = (here != then).view(each.at.numel(), -1).any(1)
        if bool(other.any()):
            own = Entries(each.label, each.weight, each.at[other])
            found.append(Changed(own, here.view(each.weight.dtype)[other]))
    return found


def put_back(found: Sequence[Changed], impl: Impl) -> None:
    """Write the values of changed entries again, after everything was restored."""
    by_device: dict[torch.device, list[Changed]] = {}
    for each in found:
        by_device.setdefault(each.values.device, []).append(each)
    for together in by_device.values():
        weights, indices = [c.entries.weight for c in together], [c.entries.at for c in together]
        scatter_(weights, indices, [c.values for c in together], impl=impl)


def describe(found: Sequence[Changed], what: str) -> str:
    """Which entries somebody else changed, in words."""
    count = sum(each.entries.at.numel() for each in found)
    places = [
        f"{each.entries.label} at {', '.join(map(str, each.entries.at[:_SHOWN].tolist()))}"
        + (", ..." if each.entries.at.numel() > _SHOWN else "")
        for each in found[:_SHOWN]
    ]
    more = f" and {len(found) - _SHOWN} more tensors" if len(found) > _SHOWN else ""
    return (
        f"{what}: somebody else changed {count} of its entries since they were written ({'; '.join(places)}{more}). "
        "They keep the values that they have now; all others hold again what they held before. Load the model again "
        "to have the original ones, and change weights before perturbing them or after the undo."
    )
