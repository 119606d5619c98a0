"""Layers outside, batches inside: every layer sees all forwards of a program, then makes room for the next.

A program is any function that calls the model: questions, batches of losses, windows of text. It runs twice. The
first time the decoder layers hand their input on as it is, and what each forward gives them is written down: the
hidden states that enter the first layer, and every layer's other arguments, made by the model's own code (masks,
rotary tables, flags). Then every layer runs on all forwards, one layer after the other. The second time the last
layer hands on what came out of that, so that norm, head and whatever the program makes of the logits are the model's
and the program's own.

That rests on each layer's input being the output of the one before, and on nothing else passing from one to the
other. `tomfisher.runtime.layer_guard` looks at it on the model at hand, and refuses by name one that is built
otherwise.
"""

from __future__ import annotations

import inspect
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from tomfisher.runtime.board import check
from tomfisher.runtime.boundaries import Boundaries
from tomfisher.runtime.forward import forward
from tomfisher.runtime.freed import allocate, free, is_freed
from tomfisher.runtime.layer_calls import (
    WAY,
    Call,
    Form,
    Hidden,
    UnsupportedLayers,
    check_marks,
    digest_of,
    mapped,
    marked,
)
from tomfisher.runtime.made_up import make_up_
from tomfisher.runtime.modes import running
from tomfisher.runtime.rules import weights_kept

Result = TypeVar("Result")
Alteration = Callable[[int], AbstractContextManager[object]]


@runtime_checkable
class StreamedModel(Protocol):
    """A model whose weights come and go.

    Attributes:
        model: a causal language model of transformers.
        layers: its decoder layers by name, in order.
    """

    model: Any
    layers: list[tuple[str, nn.Module]]

    @property
    def outer(self) -> list[str]:
        """Names of the parameters outside of the layers."""
        ...

    def load(self, names: Sequence[str]) -> None:
        """Give these parameters their values."""
        ...

    def free(self, names: Sequence[str]) -> None:
        """Take the values of these parameters away."""
        ...

    def loaded(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """These parameters have their values inside the block."""
        ...

    def prefetch(self, names: Sequence[str]) -> None:
        """Begin to read the values of these parameters."""
        ...


class Layers:
    """The decoder layers of a model, run one at a time on all forwards of a program.

    Args:
        opened: the model; its parameters outside the layers have their values wherever a program runs.
        boundaries: where the hidden states between layers are kept, unless `recording` is told another place.

    Attributes:
        forms: of what each layer hands on.
        passes: how often the layers were gone through.
    """

    def __init__(self, opened: StreamedModel, boundaries: Boundaries) -> None:
        self.opened, self.boundaries = opened, boundaries
        self.model = opened.model
        self.modules = [layer for _, layer in opened.layers]
        self.parameters = [
            [f"{name}.{own}" for own, _ in layer.named_parameters()] for name, layer in opened.layers
        ]
        self.passes = 0
        self.forms = [Form() for _ in self.modules]
        self._shadowed: list[Any] = [
            None for _ in self.modules
        ]  # forwards that were set on the layers themselves

    def learn(self, ids: Tensor) -> None:
        """Look at how the model hands hidden states from layer to layer, with layers that hand them on as they are.

        Args:
            ids: `[1, T]`, a short text.

        Raises:
            UnsupportedLayers: it is not from each layer to the next, once, with nothing beside them.
        """
        ends: list[Call] = []

        def end(call: Call, hidden: Tensor) -> Tensor:
            ends.append(call)
            return hidden

        try:
            with self._stubs(end, marking=True), running(self.model):
                logits = forward(self.model, ids).logits
        except UnsupportedLayers:
            raise
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise UnsupportedLayers(
                f"its own code fails with {type(error).__name__}: {error}. {WAY}"
            ) from error
        if len(ends) != 1:
            raise UnsupportedLayers(f"its layers are gone through {len(ends)} times. {WAY}")
        if not isinstance(logits, Tensor) or logits.ndim != 3:
            raise UnsupportedLayers(f"what it makes of the last layer's output has no rows of logits. {WAY}")

    def refuse_hooks(self) -> None:
        """A hook of a layer runs where the layer is passed over too, and so twice."""
        for number, layer in enumerate(self.modules):
            for hook in (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()):
                if not str(getattr(hook, "__module__", "")).startswith(("tomfisher.", "transformers.")):
                    raise UnsupportedLayers(
                        f"layer {number} has a hook, {hook!r}, which would run twice. {WAY}"
                    )

    @contextmanager
    def recording(self, boundaries: Boundaries | None = None) -> Iterator[list[Call]]:
        """Inside the block the layers hand their input on as it is, and every forward adds a `Call` to the list.

        Args:
            boundaries: where the hidden states of these calls are kept; None for those of all.
        """
        calls: list[Call] = []

        def note(call: Call, hidden: Tensor) -> Tensor:
            call.boundaries = boundaries or self.boundaries
            calls.append(call)
            call.boundaries[0, call] = hidden
            return hidden

        with self._stubs(note):
            yield calls

    def forward(
        self,
        calls: Sequence[Call],
        keep: bool = False,
        done: Callable[[int], object] | None = None,
        start: int = 0,
        altered: Sequence[tuple[Alteration, Sequence[Call]]] = (),
        lead: Callable[[], Result] | None = None,
    ) -> Result | None:
        """Every layer on all calls: `boundaries[i + 1, call]` is what layer i makes of `boundaries[i, call]`.

        Args:
            calls: from `recording` or `resolving`.
            keep: whether what enters a layer is kept, for a backward pass.
            done: told of every layer that it is done with.
            start: the first layer to run: what enters it is in the boundaries.
            altered: other states of the layers, which are read once for all of them: what makes one of a layer of
                this number, for the time of a block, and the calls that are run in it.
            lead: a forward of the model that goes ahead of the calls: each layer runs on it as the model calls it, then
                on all calls, so that it costs no reading of its own. It needs what lies outside the layers, and
                `start` 0.

        Returns:
            What `lead` does.

        Raises:
            ValueError: a layer changes its own weights.
        """
        self.passes += 1
        states: list[tuple[Alteration, Sequence[Call]]] = [(lambda number: nullcontext(), calls), *altered]

        def serve(number: int) -> None:
            layer = self.modules[number]
            watch = _Attributes(layer)
            for alter, own in states:
                with alter(number):
                    for call in own:
                        self._step(number, layer, call, keep)
            watch.check(number)

        def leading(number: int, layer: nn.Module) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                with self.on(number), weights_kept(layer), self._own_forwards():
                    output = layer(*args, **kwargs)
                    serve(number)
                if done is not None:
                    done(number)
                return output

            return run

        with torch.no_grad(), running(self.model):
            if lead is not None:
                with self.replaced(leading):
                    return lead()
            for number in range(start, len(self.modules)):
                with self.on(number), weights_kept(self.modules[number]):
                    serve(number)
                if done is not None:
                    done(number)
        return None

    def _step(self, number: int, layer: nn.Module, call: Call, keep: bool) -> None:
        hidden = call.boundaries[number, call]
        version = hidden._version if not hidden.is_inference() else None
        check()
        call.boundaries[number + 1, call] = call.run(number, layer, hidden)
        if version is not None and hidden._version != version:
            raise UnsupportedLayers(f"layer {number} writes into its input. {WAY}")
        if not keep:
            call.boundaries.discard((number, call))

    def again(self, calls: Sequence[Call]) -> list[Call]:
        """The same forwards once more, for another state of the layers; what is recorded of them is shared."""
        copies = [replace(call) for call in calls]
        for call, copy in zip(calls, copies, strict=True):
            call.boundaries.share((0, call), (0, copy))
        return copies

    @contextmanager
    def on(self, number: int, following: int | None = None) -> Iterator[None]:
        """A layer with its weights, while those of the following one (by default the next) are read."""
        with self.opened.loaded(self.parameters[number]):
            after = number + 1 if following is None else following
            if 0 <= after < len(self.modules):
                self.opened.prefetch(self.parameters[after])
            yield

    @contextmanager
    def made_up(self) -> Iterator[None]:
        """Inside the block the model can be called as a whole: weights that are not there are made up."""

        def making(number: int, layer: nn.Module) -> Callable[..., Any]:
            own = layer.forward

            def run(*args: Any, **kwargs: Any) -> Any:
                freed = [parameter for parameter in layer.parameters() if is_freed(parameter)]
                try:
                    for parameter in freed:
                        make_up_(allocate(parameter))
                    return own(*args, **kwargs)
                finally:
                    for parameter in freed:
                        free(parameter)

            return run

        with self.replaced(making):
            yield

    @contextmanager
    def answering(
        self,
        calls: Sequence[Call],
        last: Callable[[Call, Tensor], Tensor] | None = None,
        missing: Callable[[Call], object] | None = None,
    ) -> Iterator[None]:
        """Inside the block a forward that is one of the calls ends with what `forward` made of it.

        One that is none of them goes through all layers for itself, which reads all weights once more.

        Args:
            calls: each is the answer to one forward, in order where several are the same.
            last: what is handed on instead of the last layer's output.
            missing: told of a forward that is none of the calls before it goes through the layers; it may raise.
        """
        known = _Known(calls)

        def answer(call: Call, hidden: Tensor) -> Tensor:
            found = known.take(call)
            if found is None:
                if missing is not None:
                    missing(call)
                call.boundaries[0, call] = hidden
                with self._own_forwards():
                    self.forward([call])
            call = found or call
            output = call.boundaries[len(self.modules), call]
            return output if last is None else last(call, output)

        with self._stubs(answer):
            yield

    @contextmanager
    def ended_by(self, last: Callable[[Call, Tensor], Tensor]) -> Iterator[None]:
        """Inside the block a forward goes past the layers, and on with what `last` gives.

        Args:
            last: gets the call with all its arguments, and what entered the first layer, with its graph.
        """
        with self._stubs(last):
            yield

    @contextmanager
    def resolving(self, calls: Sequence[Call]) -> Iterator[list[Call]]:
        """Inside the block a forward that is one of the calls ends with what `forward` made of it.

        One that is none of them adds a `Call` to the list and is handed on as in `recording`, so that what the
        program makes of it is not the model's. Run the list, and the program again with all calls, until it is empty.

        Args:
            calls: as for `answering`.
        """
        known, fresh = _Known(calls), list[Call]()

        def resolve(call: Call, hidden: Tensor) -> Tensor:
            if (found := known.take(call)) is not None:
                return self.boundaries[len(self.modules), found]
            fresh.append(call)
            self.boundaries[0, call] = hidden
            return hidden

        with self._stubs(resolve):
            yield fresh

    @contextmanager
    def _stubs(self, end: Callable[[Call, Tensor], Tensor], marking: bool = False) -> Iterator[None]:
        """Layers that hand on their input; the last one hands on `end(call, hidden)`.

        Args:
            end: gets the call with all its arguments, and what entered the first layer.
            marking: whether what a layer hands on is followed into the arguments of the next ones.
        """
        running_call: list[tuple[Call, Tensor]] = []  # the call, and what the layer before handed on
        first: list[Tensor] = []

        def stub(number: int, layer: nn.Module) -> Callable[..., Any]:
            names = [n for n in inspect.signature(type(layer).forward).parameters if n != "self"]

            def hand_on(*args: Any, **kwargs: Any) -> Any:
                hidden = args[0] if args else kwargs.get(names[0])
                if not isinstance(hidden, Tensor) or hidden.ndim < 2:
                    raise UnsupportedLayers(f"layer {number} does not get hidden states first. {WAY}")
                if number == 0:
                    running_call[:], first[:] = [], [hidden]
                else:
                    self._check_handed_on(number, hidden, running_call)
                replaced = mapped(lambda v: Hidden if v is hidden else v, (args, kwargs))
                if marking:
                    check_marks(number, replaced)
                call = (
                    running_call[0][0]
                    if running_call
                    else Call(hidden.shape, digest_of(hidden, replaced), self.boundaries, self.forms)
                )
                call.arguments.append(replaced)
                handed = marked(hidden) if marking else hidden
                if number == len(self.modules) - 1:
                    ended = end(call, first[0])
                    handed = handed if marking else ended
                running_call[:] = [(call, handed)]
                return self.forms[number].filled(handed)

            return hand_on

        with self.replaced(stub):
            yield

    @contextmanager
    def replaced(self, forward_of: Callable[[int, nn.Module], Callable[..., Any]]) -> Iterator[None]:
        """Every layer with another forward, which brings the layer's weights itself or needs none."""
        before, self._shadowed = self._shadowed, [layer.__dict__.get("forward") for layer in self.modules]
        try:
            for number, layer in enumerate(self.modules):
                layer.forward = forward_of(number, layer)
            yield
        finally:
            _put_back(self.modules, self._shadowed)
            self._shadowed = before

    @contextmanager
    def _own_forwards(self) -> Iterator[None]:
        """The layers compute again, inside stubs."""
        stubs = [layer.__dict__["forward"] for layer in self.modules]
        try:
            _put_back(self.modules, self._shadowed)
            yield
        finally:
            for layer, stub in zip(self.modules, stubs, strict=True):
                layer.forward = stub

    def _check_handed_on(self, number: int, hidden: Tensor, before: list[tuple[Call, Tensor]]) -> None:
        if not before or len(before[0][0].arguments) != number:
            raise UnsupportedLayers(f"layer {number} is not called once, after layer {number - 1}. {WAY}")
        handed = before[0][1]
        if hidden is handed:
            return
        raise UnsupportedLayers(
            f"something is done to the hidden states between layers {number - 1} and {number}. {WAY}"
        )


def _put_back(layers: Sequence[nn.Module], forwards: Sequence[Any]) -> None:
    """Give layers the forwards that were set on them; None for that of the class."""
    for layer, before in zip(layers, forwards, strict=True):
        if before is None:
            layer.__dict__.pop("forward", None)
        else:
            layer.forward = before


class _Known:
    """Calls that have been run, to be found by what entered the first layer."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._waiting: dict[bytes, deque[Call]] = defaultdict(deque)
        for call in calls:
            self._waiting[call.digest].append(call)

    def take(self, call: Call) -> Call | None:
        """The next one that equals this call, if there is one."""
        waiting = self._waiting[call.digest]
        return waiting.popleft() if waiting else None


class _Attributes:
    """The tensors that the modules of a layer hold beside their parameters, so that a side channel shows."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer, self._before = layer, _held(layer)

    def check(self, number: int) -> None:
        """Refuse a layer whose modules hold other tensors than before."""
        after = _held(self._layer)
        changed = [name for name in {**self._before, **after} if self._before.get(name) != after.get(name)]
        if changed:
            raise UnsupportedLayers(f"layer {number} keeps {changed[0]} from one forward to the next. {WAY}")


def _held(layer: nn.Module) -> dict[str, tuple[int, int]]:
    held = {}
    for prefix, module in layer.named_modules():
        own = {**vars(module), **module._buffers}
        for name, value in own.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                held[f"{prefix}.{name}".lstrip(".")] = (
                    id(value),
                    -1 if value.is_inference() else value._version,
                )
    return held
