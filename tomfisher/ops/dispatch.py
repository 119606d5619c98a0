"""Which implementation of an operation runs: a table, a rule for `auto`, and no silent fallback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

Impl = Literal["auto", "triton", "cpp", "reference"]
IMPLEMENTATIONS: tuple[str, ...] = ("triton", "cpp", "reference")
_PREFERRED = {"cuda": ("triton", "reference"), "cpu": ("cpp", "reference")}
_table: dict[tuple[str, str], Callable[..., Any]] = {}


def register(op: str, impl: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that enters a function as implementation `impl` of operation `op`."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        _table[op, impl] = function
        return function

    return enter


def resolve(op: str, impl: str, device: torch.device) -> tuple[str, Callable[..., Any]]:
    """Choose the implementation of `op` for tensors on `device`.

    Args:
        op: name of the operation, e.g. "squared_gradient_".
        impl: "auto" takes the first registered of the device's preferences (CUDA: triton, reference; CPU:
            cpp, reference); any other name is taken as it is.
        device: where the tensors are.

    Returns:
        `(name, function)`: the name is what a result records.

    Raises:
        ValueError: `impl` is no known name.
        NotImplementedError: the implementation asked for does not exist for this operation.
    """
    if impl != "auto" and impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be 'auto' or one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}.")
    wanted = _PREFERRED.get(device.type, ("reference",)) if impl == "auto" else (impl,)
    for name in wanted:
        if (op, name) in _table:
            return name, _table[op, name]
    have = ", ".join(sorted(name for o, name in _table if o == op)) or "none"
    raise NotImplementedError(
        f"{op} has no implementation {impl!r} here (registered: {have}). Use impl='auto' or one of those."
    )
