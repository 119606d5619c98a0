"""Which implementation of an operation runs: a table, a rule for `auto`, and no silent fallback."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Impl = Literal["auto", "triton", "triton-hopper", "cpp", "reference"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Impl)[1:]
_PREFERRED = {"cuda": ("triton", "reference"), "cpu": ("cpp", "reference")}
# what an implementation cannot do without and an installation may lack, and how to get it
_NEEDS = {
    "triton": ("triton", "pip install triton (Linux)"),
    "triton-hopper": ("triton", "pip install triton (Linux)"),
    "cpp": ("tomfisher._C", "pip install . from a source checkout, with a C++ compiler"),
}
_PLAIN = frozenset({Tensor, nn.Parameter})
_table: dict[tuple[str, str], Callable[..., Any]] = {}


def register(op: str, impl: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that enters a function as implementation `impl` of operation `op`."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        _table[op, impl] = function
        return function

    return enter


def implementations(impl: str) -> dict[str, Callable[..., Any]]:
    """Operation to function, of every operation that `impl` has entered."""
    return {op: function for (op, name), function in _table.items() if name == impl}


def resolve(op: str, impl: str, device: torch.device) -> tuple[str, Callable[..., Any]]:
    """Choose the implementation of `op` for tensors on `device`.

    Args:
        op: name of the operation, e.g. "squared_gradient_".
        impl: "auto" takes the first that exists here of the device's preferences (CUDA: triton, reference;
            CPU: cpp, reference), and warns once where the preferred one is missing; any other name is taken
            as it is.
        device: where the tensors are.

    Returns:
        `(name, function)`: the name is what a result records.

    Raises:
        ValueError: `impl` is no known name.
        NotImplementedError: the implementation asked for does not exist here.
    """
    if impl != "auto" and impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be 'auto' or one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}.")
    if impl == "triton-hopper" and device.type != "cuda":
        raise NotImplementedError(
            f"{op}: impl='triton-hopper' needs CUDA tensors of a Hopper GPU (got {device.type}). Use impl='auto'."
        )
    if impl == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise NotImplementedError(
            f"{op}: impl='triton' needs CUDA tensors (got {device.type}). Use impl='auto', or set TRITON_INTERPRET=1 "
            "to run the kernels in Triton's interpreter."
        )
    wanted = _PREFERRED.get(device.type, ("reference",)) if impl == "auto" else (impl,)
    for name in wanted:
        function = _find(op, name)
        if function is not None:
            return name, function
        if impl == "auto" and not _present(name):
            _say_once(name)
    raise NotImplementedError(_absent(op, impl))


def traced(*tensors: Tensor) -> bool:
    """Whether a call has to go through `torch.library`: it is compiled, or its tensors only stand for others.

    Otherwise it may call the implementation itself, which saves the library's wrappers, some 50 microseconds.
    """
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return True
    return not _PLAIN.issuperset(map(type, tensors))


def _find(op: str, impl: str) -> Callable[..., Any] | None:
    if (op, impl) not in _table and impl != "reference" and _present(impl):
        importlib.import_module(f"tomfisher.ops._backends.{impl.replace('-', '_')}")
    return _table.get((op, impl))


def _present(impl: str) -> bool:
    """Whether what `impl` cannot do without is installed."""
    return impl not in _NEEDS or _installed(_NEEDS[impl][0])


@cache
def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@cache
def _say_once(impl: str) -> None:
    dependency, remedy = _NEEDS[impl]
    warnings.warn(
        f"{dependency} is not installed, so the plain-PyTorch reference runs instead of {impl!r}: correct but "
        f"slower. To get it: {remedy}.",
        stacklevel=4,
    )


def _absent(op: str, impl: str) -> str:
    have = ", ".join(name for name in IMPLEMENTATIONS if (op, name) in _table) or "none"
    if not _present(impl):
        dependency, remedy = _NEEDS[impl]
        return f"{op}: impl={impl!r} needs {dependency}, which is not installed. To get it: {remedy}."
    return f"{op} has no implementation {impl!r} here (it has: {have}). Use impl='auto' or one of those."
