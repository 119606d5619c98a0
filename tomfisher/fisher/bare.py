"""Watching matrices that no module of their own multiplies: routers and other parameters used as they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LINEAR = {nn.functional.linear, torch._C._nn.linear}
_MATMUL = {torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}
_CASTS = {
    Tensor.to, Tensor.type, Tensor.type_as, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16,
    Tensor.contiguous,
}  # fmt: skip
_TRANSPOSES = {Tensor.t, torch.t, Tensor.T.__get__, Tensor.mT.__get__}  # type: ignore[attr-defined]


class Use(NamedTuple):
    """A parameter as a factor: its name, and whether a vector is multiplied by it from the left, `x @ W`."""

    name: str
    transposed: bool


# called with the product, the vectors, the use of the matrix, the name of the bias: one of the two may be None
Watch = Callable[[Tensor, Tensor, Use | None, str | None], Tensor]


class BareProducts(TorchFunctionMode):
    """Inside the block `watch` sees every product of vectors and one of the parameters, and replaces its result.

    Seen are `F.linear(x, W, b)` and `x @ W` with `W` or `b` the parameter itself, cast, or transposed.

    Args:
        parameters: `id` of a parameter to its name.
        watch: what to do with a product.
    """

    def __init__(self, parameters: dict[int, str], watch: Watch) -> None:
        super().__init__()
        self._parameters = parameters
        self._watch = watch
        self._derived: dict[int, tuple[Tensor, Use]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _LINEAR:
            names = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            use, bias = self._use(names["weight"]), self._use(names.get("bias"))
            if use is not None or bias is not None:
                # F.linear multiplies by the transpose
                turned = None if use is None else Use(use.name, not use.transposed)
                return self._watch(result, names["input"], turned, bias.name if bias else None)
        elif func in _MATMUL and len(args) == 2 and (use := self._use(args[1])) is not None:
            return self._watch(result, args[0], use, None)
        elif args and (use := self._use(args[0])) is not None:
            if func in _CASTS:
                self._derived[id(result)] = (result, use)
            elif func in _TRANSPOSES or _swaps(func, args, kwargs):
                self._derived[id(result)] = (result, Use(use.name, not use.transposed))
        return result

    def _use(self, tensor: Any) -> Use | None:
        if not isinstance(tensor, Tensor):
            return None
        name = self._parameters.get(id(tensor))
        if name is not None:
            return Use(name, True)
        return self._derived[id(tensor)][1] if id(tensor) in self._derived else None


def _swaps(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether it is a call of `transpose` that swaps the two dimensions of a matrix."""
    return func in (Tensor.transpose, torch.transpose) and {d % 2 for d in (*args[1:], *kwargs.values())} == {
        0,
        1,
    }
