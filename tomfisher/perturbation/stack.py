"""Which perturbations are applied to which memory: the last one in must be the first one out."""

from __future__ import annotations

import weakref
from collections.abc import Set as AbstractSet
from typing import Any

Key = tuple[str, int]  # device, address of the storage
_applied: list[tuple[weakref.ref[Any], AbstractSet[Key]]] = []  # the last applied at the end


def push(owner: object, keys: AbstractSet[Key]) -> None:
    """Put `owner` on top of every storage."""
    _applied[:] = [*_alive(), (weakref.ref(owner), keys)]


def above(owner: object, keys: AbstractSet[Key]) -> list[object]:
    """The perturbations that lie on top of `owner` somewhere, the topmost first."""
    found: list[object] = []
    for reference, others in reversed(_alive()):
        other = reference()
        if other is owner:
            break
        if other is not None and not keys.isdisjoint(others):
            found.append(other)
    return found


def remove(owner: object) -> None:
    """Take `owner` off."""
    _applied[:] = [entry for entry in _alive() if entry[0]() is not owner]


def _alive() -> list[tuple[weakref.ref[Any], AbstractSet[Key]]]:
    """A perturbation that was dropped without `undo()` is permanent: it no longer stands in anyone's way."""
    return [entry for entry in _applied if entry[0]() is not None]
