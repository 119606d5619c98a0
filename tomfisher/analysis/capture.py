"""Queries and keys as the attention sees them, handed over layer by layer and kept by nobody."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from tomfisher.models.families import Architecture, Attention

_PATCHING = threading.RLock()


class QueryKey(NamedTuple):
    """What decides one layer's attention weights, for a padded batch.

    Attributes:
        q: queries after the rotation, `[B, H, T, D]`, in the model's dtype.
        k: keys after the rotation, `[B, H_kv, T, D]`.
        scale: factor of the scores q·k.
        window: how many last keys, its own included, a query sees; None: all.
        slopes: ALiBi, float32 `[H]`: `-slope·(t - j)` is added to the scores; None: nothing is.
    """

    q: Tensor
    k: Tensor
    scale: float
    window: int | None = None
    slopes: Tensor | None = None


Look = Callable[[int, QueryKey], None]


@contextlib.contextmanager
def watching(architecture: Architecture, look: Look) -> Iterator[None]:
    """Call `look(layer, inputs)` in every attention layer of every forward pass inside the block.

    It works with any attention implementation (eager, sdpa, flash): the implementation that the model is set to
    still does the work, after `look` has seen what it is given. On any exit, everything is as it was before.
    Other models that run meanwhile are not looked at; a second thread that watches waits for the first.

    Args:
        architecture: of the model that runs (`tomfisher.models.describe`).
        look: must keep neither queries nor keys.

    Yields:
        Nothing.
    """
    watch = _through_interface if architecture.family.interface else _through_projection
    with watch(architecture.attention, look):
        yield


@contextlib.contextmanager
def _through_interface(layers: dict[int, Attention], look: Look) -> Iterator[None]:
    """Wrap every function that transformers' attention interface gives out to the modules of these layers."""
    from transformers.modeling_utils import AttentionInterface

    numbers = {id(attention.module): index for index, attention in layers.items()}
    with _PATCHING:
        original = AttentionInterface.get_interface

        def get_interface(self: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
            function = original(self, *args, **kwargs)

            def attend(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
                if (index := numbers.get(id(module))) is not None:
                    scale = kwargs.get("scaling")
                    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
                    look(index, QueryKey(query, key, scale, kwargs.get("sliding_window")))
                return function(module, query, key, *args, **kwargs)

            return attend

        AttentionInterface.get_interface = get_interface
        try:
            yield
        finally:
            AttentionInterface.get_interface = original


@contextlib.contextmanager
def _through_projection(layers: dict[int, Attention], look: Look) -> Iterator[None]:
    """Hook MPT's fused projection; scale, clipping and the ALiBi bias come from the module and its call."""
    handles = []
    try:
        for index, attention in layers.items():
            bias, queries_and_keys = _mpt_hooks(index, attention, look)
            handles.append(attention.module.register_forward_pre_hook(bias, with_kwargs=True))
            projection = attention.module.get_submodule(attention.q.parameter.split(".")[-2])
            handles.append(projection.register_forward_hook(queries_and_keys))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mpt_hooks(index: int, attention: Attention, look: Look) -> tuple[Any, Any]:
    """A hook that reads the slopes from the bias of the call, and one that reads q and k from the projection."""
    module: Any = attention.module
    slopes: list[Tensor | None] = [None]

    def bias(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[1] if len(args) > 1 else kwargs.get("position_bias")
        slopes[0] = None if given is None else (given[:, 0, -1] - given[:, 0, -2]).float()

    def queries_and_keys(_: nn.Module, __: Any, output: Tensor) -> None:
        if module.clip_qkv:
            output = output.clamp(-module.clip_qkv, module.clip_qkv)
        q, k = (
            output[..., part.index.flatten().to(output.device)]
            .unflatten(-1, part.index.shape)
            .transpose(1, 2)
            for part in (attention.q, attention.k)
        )
        look(index, QueryKey(q, k, float(module.softmax_scale), slopes=slopes[0]))

    return bias, queries_and_keys
