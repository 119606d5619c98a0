"""One forward of a model as its decoder layers saw it, to be gone through again one layer at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.runtime.boundaries import Boundaries, bytes_of

WAY = "Such a model cannot be streamed: load it whole (load_model, or leave --stream out)."


class UnsupportedLayers(ValueError):
    """A model whose layers cannot be run one at a time."""


class Hidden:
    """Stands in a layer's arguments where the hidden states were."""


class Beside:
    """Stands in what a layer hands on for what it makes beside the hidden states: no other layer may get it."""


@dataclass(frozen=True)
class Form:
    """What a layer hands on: the hidden states alone, or at the head of a tuple or list.

    Attributes:
        kind: class of the tuple or list; None for hidden states alone.
        empty: which of the entries after them are None.
    """

    kind: Any = None
    empty: tuple[bool, ...] = ()

    @classmethod
    def of(cls, output: Any) -> Form:
        """The form of what a layer has handed on."""
        if not isinstance(output, tuple | list):
            return cls()
        return cls(type(output), tuple(entry is None for entry in output[1:]))

    def filled(self, hidden: Tensor) -> Any:
        """These hidden states in that form, with stand-ins beside them."""
        if self.kind is None:
            return hidden
        entries = [hidden, *(None if empty else Beside() for empty in self.empty)]
        return self.kind._make(entries) if hasattr(self.kind, "_make") else self.kind(entries)


def hidden_states(output: Any) -> Any:
    """What the next layer gets of what a layer hands on."""
    return output[0] if isinstance(output, tuple | list) and output else output


@dataclass(eq=False)
class Call:
    """One forward of the model, as its layers saw it.

    Attributes:
        shape: of the hidden states, `[B, T, D]`.
        digest: of the bits of all that entered the first layer.
        boundaries: where its hidden states are kept.
        forms: of what each layer hands on, by its number.
        arguments: per layer, its positional and named arguments.
    """

    shape: torch.Size
    digest: bytes
    boundaries: Boundaries
    forms: Sequence[Form]
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def tensors(self) -> list[Tensor]:
        """All tensors that layers get beside the hidden states."""
        found: list[Tensor] = []
        mapped(
            lambda value: found.append(value) if isinstance(value, Tensor) else None, tuple(self.arguments)
        )
        return found

    def run(self, number: int, layer: nn.Module, hidden: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """The layer's output for these hidden states, with the other arguments as they were.

        Args:
            number: of the layer.
            layer: the layer.
            hidden: `[B, T, D]`.
            rows: which of the call's rows `hidden` holds; None for all.
        """

        def put(value: Any) -> Any:
            if value is Hidden:
                return hidden
            if rows is not None and isinstance(value, Tensor) and value.ndim and len(value) == self.shape[0]:
                return value[list(rows)]
            return value

        args, kwargs = mapped(put, self.arguments[number])
        before = _leaves((args, kwargs))
        output = layer(*args, **kwargs)
        if _leaves((args, kwargs)) != before:
            raise UnsupportedLayers(f"layer {number} writes into its arguments. {WAY}")
        first = hidden_states(output)
        if not isinstance(first, Tensor) or first.shape != hidden.shape:
            shape = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise UnsupportedLayers(
                f"layer {number} ({type(layer).__name__}) makes {shape} of hidden states {tuple(hidden.shape)}. {WAY}"
            )
        if Form.of(output) != self.forms[number]:
            raise UnsupportedLayers(
                f"layer {number} hands on {_spelled(output)}, which it did not do for a short text. {WAY}"
            )
        return first


class _Mark(torch.autograd.Function):
    """Identity that can be found again in what is computed from its result."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


def marked(hidden: Tensor) -> Tensor:
    """These hidden states, to be found again by `check_marks` in what is computed from them."""
    result: Tensor = _Mark.apply(hidden.detach().requires_grad_())
    return result


def check_marks(number: int, arguments: Any) -> None:
    """Refuse arguments that come from an earlier layer beside the hidden states, or that layers may write into."""

    def look(value: Any) -> Any:
        if isinstance(value, Tensor) and value.grad_fn is not None and _is_marked(value.grad_fn):
            raise UnsupportedLayers(
                f"layer {number} also gets something that is made of an earlier layer's output. {WAY}"
            )
        if isinstance(value, Beside):
            raise UnsupportedLayers(
                f"layer {number} also gets something that an earlier layer hands on beside hidden states. {WAY}"
            )
        if not (value is Hidden or value is None or isinstance(value, Tensor | bool | int | float | str)):
            plain = isinstance(value, torch.dtype | torch.device) or (
                callable(value) and not hasattr(value, "update")
            )
            if not plain:
                raise UnsupportedLayers(
                    f"layer {number} gets a {type(value).__name__}, through which layers may see each other. {WAY}"
                )
        return value

    mapped(look, arguments)


def _spelled(output: Any) -> str:
    entries = output if isinstance(output, tuple | list) else [output]
    return f"{type(output).__name__} of {', '.join(type(entry).__name__ for entry in entries)}"


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


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same nest of tuples, lists and dictionaries, with every leaf changed."""
    if type(value) is tuple:
        return tuple(mapped(change, entry) for entry in value)
    if type(value) is list:
        return [mapped(change, entry) for entry in value]
    if type(value) is dict:
        return {key: mapped(change, entry) for key, entry in value.items()}
    return change(value)


def _leaves(value: Any) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []

    def add(leaf: Any) -> None:
        counted = isinstance(leaf, Tensor) and not leaf.is_inference()
        found.append((id(leaf), leaf._version if counted else 0))

    mapped(add, value)
    return found


def digest_of(hidden: Tensor, arguments: Any) -> bytes:
    """Of the bits of all that enters a layer."""
    digest = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> Any:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(bytes_of(value))
        else:
            digest.update(repr(value if not callable(value) else type(value)).encode())
        return value

    add(hidden)
    mapped(add, arguments)
    return digest.digest()
