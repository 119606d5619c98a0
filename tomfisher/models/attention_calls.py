"""Watching a model's attention: the queries, keys and values that enter, and the output that leaves."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_PATCHING = threading.RLock()
_PRODUCTS = frozenset(("matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "einsum"))


@dataclass(frozen=True)
class AttentionCall:
    """One attention: softmax of scores, times values.

    Attributes:
        module: the module that computes it.
        interface: whether it goes through transformers' attention interface.
        query: `[B, H, T, D]`.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D_v]`.
        scale: factor of the scores q·k; None in a module's own code, where `scores` has it.
        mask: as it was given; None where there is none.
        scores: what the softmax was taken of, `[B, H, T, S]`, in a module's own code.
        weights: that softmax.
        options: the further arguments of the call, by name.
        again: computes the output for other queries, keys and values; not in a module's own code.
    """

    module: nn.Module
    interface: bool
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float | None
    mask: Tensor | None = None
    scores: Tensor | None = None
    weights: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)
    again: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


class Watcher(Protocol):
    """What looks at calls; it must keep neither queries nor keys."""

    def enters(self, call: AttentionCall) -> None:
        """Look at a call before it is computed."""

    def leaves(self, call: AttentionCall, output: Tensor) -> Tensor:
        """Give the output of a call, as it is or another one.

        Args:
            call: the call.
            output: `[B, T, H, D_v]` through the interface, `[B, H, T, D_v]` in a module's own code.
        """


@contextlib.contextmanager
def watching_interface(concerns: Callable[[nn.Module], bool], watcher: Watcher) -> Iterator[None]:
    """Let a watcher see every call of transformers' attention interface that certain modules make.

    The implementation that a model is set to (eager, sdpa, flash) still does the work. On any exit everything is as
    it was before; a second thread that watches waits for the first.

    Args:
        concerns: which modules.
        watcher: what looks.

    Yields:
        Nothing.
    """
    from transformers.modeling_utils import AttentionInterface

    with _PATCHING:
        original = AttentionInterface.get_interface

        def get_interface(self: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
            function = original(self, *args, **kwargs)
            return lambda module, *rest, **options: (
                _watched(function, watcher, module, *rest, **options)
                if concerns(module)
                else function(module, *rest, **options)
            )

        AttentionInterface.get_interface = get_interface
        try:
            yield
        finally:
            AttentionInterface.get_interface = original


def _watched(
    function: Callable[..., Any],
    watcher: Watcher,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    *args: Any,
    **options: Any,
) -> Any:
    scale = options.get("scaling")
    call = AttentionCall(
        module,
        True,
        query,
        key,
        value,
        query.shape[-1] ** -0.5 if scale is None else float(scale),
        attention_mask if isinstance(attention_mask, Tensor) else None,
        options=options,
        again=lambda q, k, v: function(module, q, k, v, attention_mask, *args, **options)[0],
    )
    watcher.enters(call)
    output, *rest = function(module, query, key, value, attention_mask, *args, **options)
    return watcher.leaves(call, output), *rest


class OwnAttention(TorchFunctionMode):
    """Finds softmax(q·kᵀ …)·v among the PyTorch calls of a module that does without the interface.

    While active it reads every product of two tensors, every softmax and every
    `scaled_dot_product_attention`; a softmax whose input is as large as the product before it, and the product
    after it, are an attention.

    Args:
        current: gives the module that runs, or None where nothing is to be found.
        watcher: what looks.
    """

    def __init__(self, current: Callable[[], Running | None], watcher: Watcher) -> None:
        super().__init__()
        self._current, self._watcher = current, watcher
        self._product: tuple[Tensor, Tensor] | None = None
        self._soft: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        running = self._current()
        if running is None:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            return self._fused(func, running.module, *args, **kwargs)
        if name == "softmax":
            return self._softmax(func(*args, **kwargs), args[0] if args else kwargs["input"])
        pair = _operands(name, (*args, *kwargs.values()))
        if pair is None:
            return func(*args, **kwargs)
        if self._soft is not None and self._soft[3].numel() == pair[0].numel():
            query, key, scores, weights = self._soft
            self._soft = None
            call = _own_call(running, query, key, pair[1], scores, weights)
            self._watcher.enters(call)
            output = func(*args, **kwargs)
            return self._watcher.leaves(call, output.reshape(*call.query.shape[:3], -1)).reshape(output.shape)
        self._product = pair
        return func(*args, **kwargs)

    def _softmax(self, weights: Tensor, scores: Tensor) -> Tensor:
        product, self._product = self._product, None
        if product is not None and weights.shape[-1] == product[1].shape[-1]:
            query, key = product
            if weights.numel() == query.shape[:-1].numel() * key.shape[-1]:
                self._soft = (query, key.mT, scores, weights)
        return weights

    def _fused(
        self,
        func: Any,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **options: Any,
    ) -> Tensor:
        scale = query.shape[-1] ** -0.5 if scale is None else scale

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return func(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, **options)

        said = {"is_causal": is_causal}
        call = AttentionCall(module, False, query, key, value, scale, attn_mask, options=said, again=attend)
        self._watcher.enters(call)
        return self._watcher.leaves(call, attend(query, key, value))


def _operands(name: str, args: Any) -> tuple[Tensor, Tensor] | None:
    """Operands a `[..., T, D]` and b `[..., D, S]` of a product of two tensors; None where it is none."""
    if name not in _PRODUCTS:
        return None
    operands = [x for x in args if isinstance(x, Tensor)][-2:]
    if len(operands) != 2 or min(x.ndim for x in operands) < 3:
        return None
    a, b = reversed(operands) if name == "__rmatmul__" else operands
    return (a, b) if a.shape[-1] == b.shape[-2] else None


def _own_call(
    running: Running, query: Tensor, key: Tensor, value: Tensor, scores: Tensor, weights: Tensor
) -> AttentionCall:
    """The call with an axis of its own for the rows of the batch, which some join with the heads (BLOOM)."""
    query, key, value = (
        x.unflatten(0, (running.rows, -1)) if x.ndim == 3 else x for x in (query, key, value)
    )
    shape = (*query.shape[:3], key.shape[2])
    return AttentionCall(
        running.module,
        False,
        query,
        key,
        value,
        None,
        scores=scores.reshape(shape),
        weights=weights.reshape(shape),
    )


class Running(NamedTuple):
    """A module that is running, and the rows of the batch that it was given."""

    module: nn.Module
    rows: int


@contextlib.contextmanager
def inside(modules: list[nn.Module], into: list[Running]) -> Iterator[None]:
    """Keep `into` the stack of those of the modules that are running, the innermost last."""

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim), None)
        into.append(Running(module, 1 if given is None else given.shape[0]))

    with contextlib.ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(enter, with_kwargs=True))
            left = module.register_forward_hook(lambda m, _, __: _leave(into, m), always_call=True)
            hooks.enter_context(left)
        yield


def _leave(stack: list[Running], module: nn.Module) -> None:
    while stack and stack.pop().module is not module:
        pass
