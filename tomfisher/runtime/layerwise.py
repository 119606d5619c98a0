"""Layers outside, batches inside: every layer sees all forwards of a program, then makes room for the next.

A program is any function that calls the model: questions, batches of losses, windows of text. It runs twice. The
first time the decoder layers hand their input on as it is, and what each forward gives them is written down: the
hidden states that enter the first layer, and every layer's other arguments, made by the model's own code (masks,
rotary tables, flags). Then every layer runs on all forwards, one layer after the other. The second time the last
layer hands on what came out of that, so that norm, head and whatever the program makes of the logits are the model's
and the program's own.

That rests on each layer's input being the output of the one before, and on nothing else passing from one to the
other. `Layers` looks at it on the model at hand, and refuses by name one that is built otherwise.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from tomfisher.runtime.boundaries import Boundaries, bytes_of
from tomfisher.runtime.forward import forward
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


class UnsupportedLayers(ValueError):
    """A model whose layers cannot be run one at a time."""


class _Hidden:
    """Stands in a layer's arguments where the hidden states were."""


@dataclass(eq=False)
class Call:
    """One forward of the model, as its layers saw it.

    Attributes:
        shape: of the hidden states, `[B, T, D]`.
        digest: of the bits of all that entered the first layer.
        boundaries: where its hidden states are kept.
        arguments: per layer, its positional and named arguments.
    """

    shape: torch.Size
    digest: bytes
    boundaries: Boundaries
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def run(self, number: int, layer: nn.Module, hidden: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """The layer's output for these hidden states, with the other arguments as they were.

        Args:
            number: of the layer.
            layer: the layer.
            hidden: `[B, T, D]`.
            rows: which of the call's rows `hidden` holds; None for all.
        """

        def put(value: Any) -> Any:
            if value is _Hidden:
                return hidden
            if rows is not None and isinstance(value, Tensor) and value.ndim and len(value) == self.shape[0]:
                return value[list(rows)]
            return value

        args, kwargs = _mapped(put, self.arguments[number])
        before = _leaves((args, kwargs))
        output = layer(*args, **kwargs)
        if _leaves((args, kwargs)) != before:
            raise UnsupportedLayers(f"layer {number} writes into its arguments. {_WAY}")
        first = output[0] if isinstance(output, tuple | list) else output
        if not isinstance(first, Tensor) or first.shape != hidden.shape:
            shape = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise UnsupportedLayers(
                f"layer {number} ({type(layer).__name__}) makes {shape} of hidden states {tuple(hidden.shape)}. {_WAY}"
            )
        return first


class Layers:
    """The decoder layers of a model, run one at a time on all forwards of a program.

    Args:
        opened: the model; its parameters outside the layers have their values wherever a program runs.
        boundaries: where the hidden states between layers are kept, unless `recording` is told another place.

    Attributes:
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
        self._tuples: set[type[nn.Module]] = set()  # kinds of layers of whose output the model takes entry 0

    def learn(self, ids: Tensor) -> None:
        """Ask the model how it hands hidden states from layer to layer, with layers that hand them on as they are.

        Args:
            ids: `[1, T]`, a short text.

        Raises:
            UnsupportedLayers: it is not from each layer to the next, once, with nothing beside them.
        """
        self._refuse_hooks()
        for _ in range(1 + len({type(m) for m in self.modules})):
            ends: list[Call] = []

            def end(call: Call, hidden: Tensor, ends: list[Call] = ends) -> Tensor:
                ends.append(call)
                return hidden

            try:
                with self._stubs(end, marking=True), running(self.model):
                    logits = forward(self.model, ids).logits
                if len(ends) != 1:
                    raise UnsupportedLayers(f"its layers are gone through {len(ends)} times. {_WAY}")
                if isinstance(logits, Tensor) and logits.ndim == 3:
                    return
                self._tuples.add(type(self.modules[-1]))
            except _TakesFirst as found:
                self._tuples.add(found.kind)
            except UnsupportedLayers:
                raise
            except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
                if type(self.modules[-1]) in self._tuples:
                    raise UnsupportedLayers(
                        f"its own code fails with {type(error).__name__}: {error}. {_WAY}"
                    ) from error
                self._tuples.add(type(self.modules[-1]))
        raise UnsupportedLayers(f"what it takes of a layer's output could not be told. {_WAY}")

    def _refuse_hooks(self) -> None:
        """A hook of a layer runs where the layer is passed over too, and so twice."""
        for number, layer in enumerate(self.modules):
            for hook in (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()):
                if not str(getattr(hook, "__module__", "")).startswith(("tomfisher.", "transformers.")):
                    raise UnsupportedLayers(
                        f"layer {number} has a hook, {hook!r}, which would run twice. {_WAY}"
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
                with self._replaced(leading):
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
        call.boundaries[number + 1, call] = call.run(number, layer, hidden)
        if version is not None and hidden._version != version:
            raise UnsupportedLayers(f"layer {number} writes into its input. {_WAY}")
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
    def on_demand(self) -> Iterator[None]:
        """Inside the block the model is whole for one forward at a time: a layer is read when it is called."""

        def fetching(number: int, layer: nn.Module) -> Callable[..., Any]:
            def fetch(*args: Any, **kwargs: Any) -> Any:
                with self.on(number):
                    return type(layer).forward(layer, *args, **kwargs)

            return fetch

        with self._replaced(fetching):
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
                    raise UnsupportedLayers(f"layer {number} does not get hidden states first. {_WAY}")
                if number == 0:
                    running_call[:], first[:] = [], [hidden]
                else:
                    self._check_handed_on(number, hidden, running_call)
                replaced = _mapped(lambda v: _Hidden if v is hidden else v, (args, kwargs))
                if marking:
                    _check_marks(number, replaced)
                call = (
                    running_call[0][0]
                    if running_call
                    else Call(hidden.shape, _digest(hidden, replaced), self.boundaries)
                )
                call.arguments.append(replaced)
                handed = _Mark.apply(hidden.detach().requires_grad_()) if marking else hidden
                if number == len(self.modules) - 1:
                    ended = end(call, first[0])
                    handed = handed if marking else ended
                running_call[:] = [(call, handed)]
                return (handed,) if type(layer) in self._tuples else handed

            return hand_on

        with self._replaced(stub):
            yield

    @contextmanager
    def _replaced(self, forward_of: Callable[[int, nn.Module], Callable[..., Any]]) -> Iterator[None]:
        """Every layer with another forward, which brings the layer's weights itself or needs none."""
        shadowed = [layer.__dict__.get("forward") for layer in self.modules]
        try:
            for number, layer in enumerate(self.modules):
                layer.forward = forward_of(number, layer)
            yield
        finally:
            for layer, before in zip(self.modules, shadowed, strict=True):
                if before is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.forward = before

    @contextmanager
    def _own_forwards(self) -> Iterator[None]:
        """The layers compute again, inside stubs."""
        stubs = [layer.__dict__.pop("forward") for layer in self.modules]
        try:
            yield
        finally:
            for layer, stub in zip(self.modules, stubs, strict=True):
                layer.forward = stub

    def _check_handed_on(self, number: int, hidden: Tensor, before: list[tuple[Call, Tensor]]) -> None:
        if not before or len(before[0][0].arguments) != number:
            raise UnsupportedLayers(f"layer {number} is not called once, after layer {number - 1}. {_WAY}")
        handed = before[0][1]
        if hidden is handed:
            return
        kind = type(self.modules[number - 1])
        if kind not in self._tuples and hidden.shape == handed.shape[1:]:
            raise _TakesFirst(kind)
        raise UnsupportedLayers(
            f"something is done to the hidden states between layers {number - 1} and {number}. {_WAY}"
        )


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


_WAY = "Such a model cannot be streamed: load it whole (load_model, or leave --stream out)."


class _TakesFirst(Exception):
    """A kind of layer of whose output the model takes the first entry."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__(kind.__name__)
        self.kind = kind


class _Mark(torch.autograd.Function):
    """Identity that can be found again in what is computed from its result."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


def _check_marks(number: int, arguments: Any) -> None:
    """Refuse arguments that come from an earlier layer beside the hidden states, or that layers may write into."""

    def look(value: Any) -> Any:
        if isinstance(value, Tensor) and value.grad_fn is not None and _is_marked(value.grad_fn):
            raise UnsupportedLayers(
                f"layer {number} also gets something that is made of an earlier layer's output. {_WAY}"
            )
        if not (value is _Hidden or value is None or isinstance(value, Tensor | bool | int | float | str)):
            plain = isinstance(value, torch.dtype | torch.device) or (
                callable(value) and not hasattr(value, "update")
            )
            if not plain:
                raise UnsupportedLayers(
                    f"layer {number} gets a {type(value).__name__}, through which layers may see each other. {_WAY}"
                )
        return value

    _mapped(look, arguments)


def _is_marked(node: Any) -> bool:
    seen, left = set(), [node]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == "_MarkBackward":
            return True
        seen.add(node)
        left += [following for following, _ in node.next_functions]
    return False


class _Attributes:
    """The tensors that the modules of a layer hold beside their parameters, so that a side channel shows."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer, self._before = layer, _held(layer)

    def check(self, number: int) -> None:
        """Refuse a layer whose modules hold other tensors than before."""
        after = _held(self._layer)
        changed = [name for name in {**self._before, **after} if self._before.get(name) != after.get(name)]
        if changed:
            raise UnsupportedLayers(f"layer {number} keeps {changed[0]} from one forward to the next. {_WAY}")


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


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same nest of tuples, lists and dictionaries, with every leaf changed."""
    if type(value) is tuple:
        return tuple(_mapped(change, entry) for entry in value)
    if type(value) is list:
        return [_mapped(change, entry) for entry in value]
    if type(value) is dict:
        return {key: _mapped(change, entry) for key, entry in value.items()}
    return change(value)


def _leaves(value: Any) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []

    def add(leaf: Any) -> None:
        counted = isinstance(leaf, Tensor) and not leaf.is_inference()
        found.append((id(leaf), leaf._version if counted else 0))

    _mapped(add, value)
    return found


def _digest(hidden: Tensor, arguments: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> Any:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(bytes_of(value))
        else:
            digest.update(repr(value if not callable(value) else type(value)).encode())
        return value

    add(hidden)
    _mapped(add, arguments)
    return digest.digest()
