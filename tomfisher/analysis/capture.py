"""Queries and keys as the attention sees them, handed over layer by layer and kept by nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from tomfisher.models.attention_calls import AttentionCall, OwnAttention, Running, inside, watching_interface
from tomfisher.models.families import Architecture
from tomfisher.models.queries import QueryKey, query_key

__all__ = ["Look", "QueryKey", "watching"]
Look = Callable[[int, QueryKey], None]


@contextlib.contextmanager
def watching(architecture: Architecture, look: Look) -> Iterator[None]:
    """Call `look(layer, inputs)` in every attention layer of every forward pass inside the block.

    It works with any attention implementation (eager, sdpa, flash): the implementation that the model is set to
    still does the work, after `look` has seen what it is given. Attention in a module's own code is found among its
    PyTorch calls. On any exit, everything is as it was before. Other models that run meanwhile are not looked at; a
    second thread that watches waits for the first.

    Args:
        architecture: of the model that runs (`tomfisher.models.describe`).
        look: must keep neither queries nor keys.

    Yields:
        Nothing.
    """
    watcher = _Looking(architecture, look)
    running: list[Running] = []
    own = [a.module for a in architecture.attention.values() if not a.interface]
    mode = (
        OwnAttention(lambda: running[-1] if running else None, watcher) if own else contextlib.nullcontext()
    )
    with watching_interface(watcher.concerns, watcher), inside(own, running), mode:
        yield


class _Looking:
    """Hands each call of the architecture's layers to `look`."""

    def __init__(self, architecture: Architecture, look: Look) -> None:
        self._layers = {id(a.module): (index, a) for index, a in architecture.attention.items()}
        self._look = look

    def concerns(self, module: nn.Module) -> bool:
        """Whether the module is one of the layers'."""
        return id(module) in self._layers

    def enters(self, call: AttentionCall) -> None:
        """See `Watcher.enters`."""
        index, attention = self._layers[id(call.module)]
        if call.scores is not None and attention.scale is None:
            return
        seen = query_key(call, attention.scale)
        self._look(index, seen._replace(k=seen.k[:, :: attention.repeats]))

    def leaves(self, call: AttentionCall, output: Tensor) -> Tensor:
        """See `Watcher.leaves`."""
        return output
