"""Whether layers that run one at a time give what the model gives: looked at before any of them is read.

A layer may see another one through things that neither its arguments nor its modules show: a closure, a global, a
weight that another layer reads. No single reading shows that, since all texts that pass a layer find there what the
last text left in the layers before it. So the whole model runs at once, with made-up weights (`made_up`), which cost
no reading: a short text goes forward and back through it, then layer by layer after another text of another length
has gone through each. Hidden states, the loss, gradients of hidden states and a few rows of every weight's gradient
have to be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.runtime.boundaries import Boundaries
from tomfisher.runtime.forward import forward, ordinary_ids
from tomfisher.runtime.layer_calls import WAY, Call, Form, UnsupportedLayers, hidden_states
from tomfisher.runtime.layerwise import Layers
from tomfisher.runtime.made_up import made_up
from tomfisher.runtime.modes import frozen

_TOKENS, _OTHER_TOKENS = 8, 5
_ROWS = 4  # of the gradient of a weight
_FAILURES = (
    RuntimeError,
    IndexError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)


def examine_layers(layers: Layers, gradients: bool = False) -> None:
    """Learn how the model hands hidden states from layer to layer, and see that nothing else passes between them.

    Args:
        layers: of the model, whose parameters outside the layers have their values.
        gradients: whether the backward pass is looked at too.

    Raises:
        UnsupportedLayers: its layers cannot be run one at a time.
    """
    layers.refuse_hooks()
    ids = ordinary_ids(layers.model)
    text, other = (torch.tensor([part]) for part in (ids[:_TOKENS], ids[-_OTHER_TOKENS:]))
    with made_up(p for layer in layers.modules for p in layer.parameters()) as are_kept:
        look = _Look(layers, text, other, gradients)
        with _own_code():
            whole = look.at_once()
        layers.learn(text)
        try:
            with _own_code():
                look.compare(whole, look.one_by_one(whole))
        except UnsupportedLayers:
            if are_kept():
                raise
            # a layer writes to its weights: where it does so to its own, `weights_kept` names the one


@dataclass
class _Seen:
    """What a text made of the model.

    Attributes:
        entering: hidden states that enter each layer, and those that leave the last.
        loss: of its logits.
        gradients: of each of `entering`, as far as there are such.
        rows: a few rows of the gradient of every parameter, by name.
    """

    entering: list[Tensor] = field(default_factory=list)
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    gradients: dict[int, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)


class _Look:
    def __init__(self, layers: Layers, text: Tensor, other: Tensor, gradients: bool) -> None:
        self._layers, self._text, self._other, self._gradients = layers, text, other, gradients
        names: dict[nn.Parameter, list[str]] = {}
        for name, parameter in layers.model.named_parameters(remove_duplicate=False):
            names.setdefault(parameter, []).append(name)
        inside = {p for layer in layers.modules for p in layer.parameters() if p.dtype.is_floating_point}
        # the gradient of one that several layers share is a sum over them
        self._watched = {found[0]: p for p, found in names.items() if p in inside and len(found) == 1}

    def at_once(self) -> _Seen:
        """The model as it is, which also shows what form each layer's output has."""
        seen, kept = _Seen(), dict[int, Tensor]()

        def watching(number: int, layer: nn.Module) -> Callable[..., Any]:
            own = layer.forward

            def watch(*args: Any, **kwargs: Any) -> Any:
                output = own(*args, **kwargs)
                self._layers.forms[number] = Form.of(output)
                hidden = hidden_states(output)
                if isinstance(hidden, Tensor):
                    kept[number + 1] = hidden
                    seen.entering.append(hidden.detach().clone())
                    if hidden.requires_grad:
                        hidden.register_hook(_put(seen.gradients, number + 1))
                return output

            return watch

        with self._running(seen), self._layers.replaced(watching):
            seen.loss = self._finish(forward(self._layers.model, self._text).logits)
        return seen

    def one_by_one(self, whole: _Seen) -> _Seen:
        """Each layer on the text and on the other one, which it leaves last."""
        layers, boundaries, seen = self._layers, Boundaries(), _Seen()
        with self._running(seen):
            with layers.recording(boundaries) as calls, torch.no_grad():
                for ids in (self._text, self._other):
                    forward(layers.model, ids)
            text, other = calls
            with torch.no_grad():
                for number, layer in enumerate(layers.modules):
                    # not the same numbers of times in each: what is put on a stack has to come out for another text
                    for call in (other, other, text, other) if number % 2 else (text, other):
                        boundaries[number + 1, call] = call.run(number, layer, boundaries[number, call])
                    seen.entering.append(boundaries[number + 1, text])
                    _compare_hidden(number, layer, seen.entering[-1], whole.entering[number])
            leaves: list[Tensor] = []

            def leaf(call: Call, output: Tensor) -> Tensor:
                leaves[:] = [output.detach().requires_grad_(self._gradients)]
                return leaves[0]

            with layers.answering([text], leaf, missing=_refuse_other):
                seen.loss = self._finish(forward(layers.model, self._text).logits)
            if self._gradients:
                self._back(text, leaves[0].grad, seen)
        return seen

    def compare(self, whole: _Seen, apart: _Seen) -> None:
        """Refuse where the text made something else of the model layer by layer."""
        if not _is_near(apart.loss, whole.loss):
            raise UnsupportedLayers(
                f"layer by layer a short text has another loss than in one forward. {WAY}"
            )
        if not self._gradients:
            return
        for number, gradient in whole.gradients.items():
            if number in apart.gradients and not _is_near(apart.gradients[number], gradient):
                raise UnsupportedLayers(
                    f"layer by layer another gradient enters layer {number - 1} from above than in one pass: "
                    f"something else passes between the layers. {WAY}"
                )
        largest = max((float(rows.abs().max()) for rows in whole.rows.values()), default=0.0)
        for name in whole.rows.keys() | apart.rows.keys():
            one, other = whole.rows.get(name), apart.rows.get(name)
            if one is None or other is None or not _is_near(other, one, largest):
                raise UnsupportedLayers(
                    f"layer by layer the gradient of {name} is not what it is in one pass: something else passes "
                    f"between the layers. {WAY}"
                )

    def _back(self, text: Call, gradient: Tensor | None, seen: _Seen) -> None:
        layers = self._layers
        for number in range(len(layers.modules) - 1, -1, -1):
            if gradient is None:
                return
            seen.gradients[number + 1] = gradient
            hidden = text.boundaries[number, text].detach().requires_grad_()
            text.run(number, layers.modules[number], hidden).backward(gradient)
            gradient = hidden.grad

    def _finish(self, logits: Any) -> Tensor:
        """A number that all logits have a part in, and its gradients."""
        loss = torch.logsumexp(logits.float(), -1).mean()
        if self._gradients:
            loss.backward()
        return loss.detach()

    @contextmanager
    def _running(self, seen: _Seen) -> Iterator[None]:
        """The model as it runs for a Fisher diagonal, or for an evaluation; rows of gradients are seen."""
        handles = []
        try:
            with (
                frozen(self._layers.model, tuple(self._watched.values()) if self._gradients else ()),
                torch.set_grad_enabled(self._gradients),
            ):
                if self._gradients:
                    for name, parameter in self._watched.items():
                        take = _take(seen.rows, name)
                        handles.append(parameter.register_post_accumulate_grad_hook(take))
                yield
        finally:
            for handle in handles:
                handle.remove()


def _take(rows: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    def take(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        flat = gradient.reshape(-1, gradient.shape[-1] if gradient.ndim > 1 else max(1, gradient.numel()))
        rows[name] = flat[torch.linspace(0, len(flat) - 1, min(_ROWS, len(flat))).long()].clone()

    return take


def _put(gradients: dict[int, Tensor], number: int) -> Callable[[Tensor], None]:
    def put(gradient: Tensor) -> None:
        gradients[number] = gradient.detach().clone()

    return put


def _compare_hidden(number: int, layer: nn.Module, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape or not _is_near(found, expected):
        raise UnsupportedLayers(
            f"layer {number} ({type(layer).__name__}) makes something else of a short text when other texts go "
            f"through the layers: something passes between them beside the hidden states. {WAY}"
        )


def _is_near(found: Tensor, expected: Tensor, largest: float = 0.0) -> bool:
    """Equal but for rounding, which the same kernels make only where tensors lie otherwise in memory.

    Args:
        found: with made-up weights.
        expected: with the same.
        largest: of what they were computed beside: what is zero but for rounding may differ by its rounding.
    """
    if not expected.numel():
        return found.shape == expected.shape
    eps = torch.finfo(expected.dtype).eps
    allowed = eps**0.5 * float(expected.abs().max()) + 16 * eps * largest
    return found.shape == expected.shape and float((found - expected).abs().max()) <= allowed


def _refuse_other(call: Call) -> None:
    raise UnsupportedLayers(
        f"the same short text enters the layers with other numbers the second time. {WAY}"
    )


@contextmanager
def _own_code() -> Iterator[None]:
    """What the model's own code raises, in words."""
    try:
        yield
    except UnsupportedLayers:
        raise
    except _FAILURES as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise UnsupportedLayers(f"its own code fails with {type(error).__name__}: {said}. {WAY}") from error
