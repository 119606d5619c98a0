"""Asking a model where its attention's numbers come from, by a forward pass whose projections give out code words.

In that pass every output of every linear map in an attention module is ±1, the same at every position, with its own
code over the rows of the batch. At position 0 no rotary embedding turns anything, and a norm, a scale or a clip keeps
signs: so the signs of what reaches attention say which output of which map made it, whatever was done on the way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tomfisher.models.attention_calls import (
    AttentionCall,
    OwnAttention,
    Running,
    inside,
    watching_interface,
)
from tomfisher.models.codes import ROWS, Codes
from tomfisher.models.queries import is_biased, query_key
from tomfisher.models.weights_check import fitted_scale, wrong_weights
from tomfisher.runtime.device import device_of
from tomfisher.runtime.forward import accepts, forward, ordinary_ids
from tomfisher.runtime.modes import running
from tomfisher.runtime.structure import is_linear

TOKENS = 6
Made = tuple[nn.Module, Tensor]


@dataclass
class Probed:
    """What one attention module was seen to do.

    Attributes:
        module: the module.
        interface: whether it goes through transformers' attention interface.
        calls: attentions that it computed in one forward pass.
        even: whether what it was given was the same at every position.
        query: `[ROWS, H, TOKENS, D]` as it reached attention.
        key: the same of the keys.
        made: "q", "k", "v": the linear maps that make it, each with its output for every dimension of every head,
            int64 `[heads, D]`, -1 where the dimension is another's; empty where something else stands between.
        output: the linear map that takes in what attention gives, and its input for each dimension `[H, D_v]`.
        scale: factor of the scores, where the module's own code has it.
        added: what the distance adds to the scores: in proportion to it, otherwise, or nothing.
        wrong: why the attention weights do not follow from queries and keys; None where they do.
    """

    module: nn.Module
    interface: bool
    calls: int = 0
    even: bool = False
    query: Tensor | None = None
    key: Tensor | None = None
    made: dict[str, list[Made]] = field(default_factory=dict)
    output: Made | None = None
    scale: float | None = None
    added: Literal["alibi", "relative"] | None = None
    wrong: str | None = None


def probe(
    model: Any, decoder: nn.Module, lists: Sequence[list[nn.Module]]
) -> tuple[list[nn.Module], list[Probed], bool]:
    """Run a model twice on a few equal tokens: to find its attention modules, then with code words.

    Args:
        model: a causal language model of transformers; nothing of it is changed.
        decoder: its text decoder; attention outside it is not looked for.
        lists: what may be the list of its layers: the first that holds attention is, or the first.

    Returns:
        The layers, what each attention module does, in the order of the calls, and whether the first layer's input
        depends on the position.
    """
    ids = torch.full((ROWS, TOKENS), _token(model), device=device_of(model))
    last = (
        {"logits_to_keep": torch.tensor([TOKENS - 1], device=ids.device)}
        if accepts(model, "logits_to_keep")
        else {}
    )
    finder = _Finder(lists)
    with torch.no_grad(), running(model):
        with finder.watching(decoder):
            forward(model, ids[:1], **last)
        layers = finder.layers()
        coded = _Coded(finder.found, layers)
        with coded.watching():
            forward(model, ids, **last)
    return layers, list(coded.found.values()), id(layers[0]) in finder.placed


class _Finder:
    """The first pass: which modules compute attention, and which first layers are given positions."""

    def __init__(self, lists: Sequence[list[nn.Module]]) -> None:
        self.found: dict[int, tuple[nn.Module, bool]] = {}
        self.placed: set[int] = set()
        self._lists = lists
        self._stack: list[Running] = []
        self._busy = False  # the interface's function computes with the same PyTorch calls

    @contextlib.contextmanager
    def watching(self, decoder: nn.Module) -> Iterator[None]:
        modules = list(decoder.modules())
        known = {id(module) for module in modules}
        own = OwnAttention(lambda: self._stack[-1] if self._stack and not self._busy else None, self)
        with contextlib.ExitStack() as hooks:
            for layers in self._lists:
                hooks.enter_context(
                    layers[0].register_forward_pre_hook(self._look_at_input, with_kwargs=True)
                )
            with inside(modules, self._stack), watching_interface(lambda m: id(m) in known, self), own:
                yield

    def _look_at_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _even(args, kwargs) is False:
            self.placed.add(id(module))

    def layers(self) -> list[nn.Module]:
        """The list of layers."""
        holding = (
            layers for layers in self._lists if any(id(m) in self.found for x in layers for m in x.modules())
        )
        return next(holding, self._lists[0])

    def enters(self, call: AttentionCall) -> None:
        self.found[id(call.module)] = (call.module, call.interface)
        self._busy = True

    def leaves(self, call: AttentionCall, output: Tensor) -> Tensor:
        self._busy = False
        return output


class _Coded:
    """The second pass: projections and attention give out code words, which are read where they arrive."""

    def __init__(self, modules: dict[int, tuple[nn.Module, bool]], layers: list[nn.Module]) -> None:
        self.found = {key: Probed(module, interface) for key, (module, interface) in modules.items()}
        self._layers = layers
        self._codes = Codes()
        self._pending: dict[int, Tensor] = {}
        self._current: list[Running] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        own = [p.module for p in self.found.values() if not p.interface]
        mode = OwnAttention(lambda: self._current[-1] if self._current else None, self)
        with contextlib.ExitStack() as hooks:
            hooks.enter_context(inside(own, self._current))
            hooks.enter_context(watching_interface(self._through_interface, self))
            self._hook(hooks)
            if own:
                hooks.enter_context(mode)
            yield

    def _through_interface(self, module: nn.Module) -> bool:
        return id(module) in self.found and self.found[id(module)].interface

    def _hook(self, hooks: contextlib.ExitStack) -> None:
        for probed in self.found.values():
            look = partial(_look_even, probed)
            hooks.enter_context(probed.module.register_forward_pre_hook(look, with_kwargs=True))
            for module in probed.module.modules():
                if _maps(module):
                    hooks.enter_context(module.register_forward_hook(self._codes.speak))
                elif _is_norm(module):
                    hooks.enter_context(module.register_forward_hook(_let_through))
        for layer in self._layers:
            keys = [key for key, p in self.found.items() if any(m is p.module for m in layer.modules())]
            for module in layer.modules() if keys else ():
                if is_linear(module):
                    hooks.enter_context(module.register_forward_pre_hook(self._listener(keys)))

    def _listener(self, keys: list[int]) -> Any:
        """A hook that looks whether a linear map takes in what an attention of its layer has given out."""

        def listen(module: nn.Module, args: tuple[Any, ...]) -> None:
            for key in keys:
                given = self._pending.get(key)
                if given is None or not args or args[0].shape[-1] != given.shape[1:].numel():
                    continue
                if args[0].numel() % (ROWS * args[0].shape[-1]):
                    continue
                index = Codes.read(
                    args[0].reshape(ROWS, -1, args[0].shape[-1])[:, 0], given.shape[1:].numel()
                )
                if sorted(index.tolist()) == list(range(len(index))):
                    self.found[key].output = (module, index.argsort().view(given.shape[1:]))
                    del self._pending[key]

        return listen

    def enters(self, call: AttentionCall) -> None:
        probed = self.found[id(call.module)]
        probed.calls += 1
        if probed.calls > 1:
            return
        probed.query, probed.key = call.query.clone(), call.key.clone()
        for part, x in (("q", call.query), ("k", call.key), ("v", call.value)):
            probed.made[part] = self._codes.makers(x[:, :, 0])
        if call.query.shape[2] != TOKENS or call.key.shape[2] != TOKENS:
            probed.wrong = (
                f"computes attention of {call.query.shape[2]} queries over {call.key.shape[2]} keys where the text has "
                f"{TOKENS} tokens"
            )
            return
        if call.scores is not None:
            probed.scale = fitted_scale(call)
        probed.wrong = wrong_weights(call, probed.scale)
        if probed.wrong is None:
            seen = query_key(call, probed.scale)
            probed.added = "alibi" if seen.slopes is not None else "relative" if is_biased(seen) else None

    def leaves(self, call: AttentionCall, output: Tensor) -> Tensor:
        shape = output.transpose(1, 2).shape if call.interface else output.shape
        words = Codes.words(shape[1] * shape[3], output).view(ROWS, shape[1], 1, shape[3]).expand(shape)
        self._pending[id(call.module)] = words[:, :, 0]
        return words.transpose(1, 2).contiguous() if call.interface else words.contiguous()


def _look_even(probed: Probed, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    probed.even = _even(args, kwargs) is True


def _even(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
    """Whether hidden states `[B, T, C]` are the same at every position; None where none are given."""
    given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()]
    if not given or given[0].ndim != 3:
        return None
    first = given[0][:, :1].expand_as(given[0])
    return bool(torch.allclose(given[0], first, rtol=1e-5, atol=1e-6 * float(first.abs().max())))


def _maps(module: nn.Module) -> bool:
    """Whether a module is a linear map, or looks like one: it owns a matrix and nothing below it."""
    weight = getattr(module, "weight", None)
    bare = isinstance(weight, Tensor) and weight.ndim == 2 and not any(True for _ in module.children())
    return is_linear(module) or (bare and not isinstance(module, nn.Embedding))


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm of queries or keys, whose bias could turn a sign."""
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def _let_through(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    same = args and isinstance(output, Tensor) and args[0].shape == output.shape
    return args[0].to(output.dtype) if same else output


def _token(model: Any) -> int:
    """A token that the config gives no meaning of its own (padding, begin, image)."""
    ids = ordinary_ids(model)
    return next((i for i in ids if i >= 5), ids[-1])
