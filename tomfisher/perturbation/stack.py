"""Which perturbations are applied to which memory: the last one in must be the first one out."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

Key = tuple[str, int]  # device, address of the storage
_applied: dict[Key, list[weakref.ref[Any]]] = {}


def push(owner: object, keys: Iterable[Key]) -> None:
    """Put `owner` on top of the stack of every storage."""
    for key in keys:
        _applied[key] = [*_alive(key), weakref.ref(owner)]


def above(owner: object, keys: Iterable[Key]) -> list[object]:
    """The perturbations that lie on top of `owner` somewhere, the topmost first."""
    found: list[object] = []
    for key in keys:
        stack = [reference() for reference in _alive(key)]
        for other in reversed(stack[stack.index(owner) + 1 :]):
            if other not in found:
                found.append(other)
    return found


def remove(owner: object, keys: Iterable[Key]) -> None:
    """Take `owner` off every stack."""
    for key in keys:
        left = [reference for reference in _alive(key) if reference() is not owner]
        if left:
            _applied[key] = left
        else:
            _applied.pop(key, None)


def _alive(key: Key) -> list[weakref.ref[Any]]:
    """A perturbation that was dropped without `undo()` is permanent: it no longer stands in anyone's way."""
    return [reference for reference in _applied.get(key, []) if reference() is not None]
