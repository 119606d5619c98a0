"""`intervene`: a model whose attention computes with changed queries, keys or scores, inside a block."""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from tomfisher.interventions.base import Intervention, Target
from tomfisher.interventions.inputs import AttentionInputs, Edit
from tomfisher.interventions.internals import Internals
from tomfisher.models.families import UnsupportedModel, describe
from tomfisher.models.queries import null_key
from tomfisher.runtime.torch_state import plain_torch

_LOCK = threading.RLock()
_sessions: list[_Session] = []  # of all models, in the order in which their blocks were entered


@contextlib.contextmanager
def intervene(model: Any, *interventions: Intervention, internals: Internals | None = None) -> Iterator[None]:
    """Change what a model's attention computes with inside the block; the weights stay as they are.

    Example::

        with tomfisher.interventions.intervene(model, ScaleBand("slow", 0.5), OffSink(0.1)):
            scores = tomfisher.evaluate.score(model, tokenizer, stories)  # before: with pack=False, to round alike

    Interventions act in the order given, and those of an outer block before those of an inner one. They act where
    queries and keys enter attention: a key-value cache holds untouched keys, so a text gives the same whether it runs
    at once or on a cache. Analyses inside the block (`tomfisher.analysis`) see the changed queries and keys, but
    not what `off_sink` adds to the scores. On any exit everything is as it was before.

    Args:
        model: a causal language model of transformers.
        interventions: `ScaleBand`, `ScalePairs`, `RotateKey`, `AimKey`, `ScaleKey`, `OffSink`.
        internals: `measure_internals(model, prompts)` of the untouched model, for those that depend on it.

    Yields:
        Nothing.

    Raises:
        UnsupportedModel: the model lacks what is to be changed, or computes attention out of reach.
        ValueError: a layer or head that it does not have, or no internals where they are needed.
    """
    with plain_torch():
        session = _Session(Target(model, describe(model), internals), interventions)
    try:
        session.open()
        yield
    finally:
        session.close()


class _Session:
    """The edits of one block, by attention module."""

    def __init__(self, target: Target, interventions: tuple[Intervention, ...]) -> None:
        self._edits: dict[int, list[Edit]] = {}
        self._past: dict[int, int] = {}
        self._reached: set[int] = set()
        self._handles: list[Any] = []
        self._modules: list[nn.Module] = []
        for intervention in interventions:
            for layer, edit in intervention.bind(target).items():
                module = target.architecture.attention[layer].module
                self._edits.setdefault(id(module), []).append(edit)
                self._modules.append(module)

    def open(self) -> None:
        """Begin to act."""
        for module in {id(m): m for m in self._modules}.values():
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after))
        with _LOCK:
            _sessions.append(self)
            _patch()

    def close(self) -> None:
        """Stop acting and remove every hook."""
        for handle in self._handles:
            handle.remove()
        with _LOCK:
            _sessions[:] = [session for session in _sessions if session is not self]
            _patch()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember how many tokens lie before this call."""
        caches = [value for value in (*kwargs.values(), *args) if hasattr(value, "get_seq_length")]
        layer: Any = getattr(module, "layer_idx", 0)
        self._past[id(module)] = int(caches[0].get_seq_length(layer)) if caches else 0
        self._reached.discard(id(module))

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if id(module) not in self._reached:
            raise UnsupportedModel(
                f"An attention layer ({type(module).__name__}) ran without being reached: it does not go through "
                "transformers' attention interface. Load the model without trust_remote_code, or with another "
                "attn_implementation."
            )

    def edit(self, module: nn.Module, call: AttentionInputs) -> AttentionInputs:
        """The call as this block changes it."""
        self._reached.add(id(module))
        call = call._replace(past=self._past[id(module)])
        for edit in self._edits[id(module)]:
            call = edit(call)
        return call

    def concerns(self, module: nn.Module) -> bool:
        """Whether this block changes anything there."""
        return id(module) in self._edits


def _patch() -> None:
    """Shadow `get_interface` on transformers' one instance while any block is open.

    The class keeps its own, so that whatever else wraps that (`tomfisher.analysis.collect`) gets the changed
    queries and keys, whichever was there first.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if _sessions:
        ALL_ATTENTION_FUNCTIONS.get_interface = types.MethodType(_get_interface, ALL_ATTENTION_FUNCTIONS)
    else:
        vars(ALL_ATTENTION_FUNCTIONS).pop("get_interface", None)


def _get_interface(self: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    function = type(self).get_interface(self, *args, **kwargs)

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        sessions = [session for session in _sessions if session.concerns(module)]
        if sessions:
            scale = kwargs.get("scaling")
            scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
            window, softcap = kwargs.get("sliding_window"), kwargs.get("softcap")
            null, added = null_key(kwargs), kwargs.get("position_bias")
            call = AttentionInputs(
                query, key, attention_mask, scale, softcap, window, sinks=null, added=added
            )
            for session in sessions:
                call = session.edit(module, call)
            query, key, attention_mask = call.query, call.key, call.mask
        return function(module, query, key, value, attention_mask, *args, **kwargs)

    return attend
