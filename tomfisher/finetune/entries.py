"""The masked entries of a model as small vectors that an optimiser can own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tomfisher.masks import SparseMask
from tomfisher.ops import scatter_
from tomfisher.ops.dispatch import Impl
from tomfisher.ops.scatter import gather
from tomfisher.perturbation.targets import named_tensors, resolve_targets


@dataclass(frozen=True)
class Entry:
    """The masked entries of one piece of memory.

    Attributes:
        name: the first of the tensor's names.
        weight: the tensor, detached, of any strides.
        index: `[k]` int64, sorted flat row-major positions, on the weight's device; k >= 1.
        parameters: every parameter of the model that is this memory; several if weights are tied by storage.
    """

    name: str
    weight: Tensor
    index: Tensor
    parameters: tuple[nn.Parameter, ...]

    def read(self) -> Tensor:
        """The values `[k]` as they are now, bit patterns unchanged."""
        return gather(self.weight, self.index)


def find_entries(model: nn.Module, mask: SparseMask) -> list[Entry]:
    """Find the memory behind a mask, each entry once, however many names it has.

    Returns:
        One `Entry` per piece of memory with masked entries.

    Raises:
        TypeError: a weight is quantised, of an integer dtype, or distributed.
        ValueError: the mask is of another model, or names no entry.
    """
    named = named_tensors(model)
    sharing: dict[tuple[object, ...], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        sharing.setdefault(_place(parameter), []).append(parameter)
    entries = []
    for target in resolve_targets(model, mask):
        weight = named[target.names[0]].detach()
        index = torch.cat([mask[name] for name in target.names]).unique()
        same = tuple(sharing[_place(weight)])
        entries.append(Entry(target.names[0], weight, index.to(weight.device), same))
    if not entries:
        raise ValueError("The mask is empty: there is nothing to train. Use a mask with entries.")
    return entries


def write(entries: Sequence[Entry], values: Sequence[Tensor], impl: Impl = "auto") -> None:
    """Write `values[i]` `[k]`, of the weight's dtype, to `entries[i]`; bit patterns unchanged."""
    by_device: dict[torch.device, list[int]] = {}
    for i, entry in enumerate(entries):
        by_device.setdefault(entry.weight.device, []).append(i)
    for chosen in by_device.values():
        weights = [entries[i].weight for i in chosen]
        scatter_(weights, [entries[i].index for i in chosen], [values[i] for i in chosen], impl=impl)


def master_values(entries: Sequence[Entry]) -> list[nn.Parameter]:
    """The entries as trainable vectors `[k]`: float64 for float64 weights, float32 for all others."""
    return [nn.Parameter(v if v.dtype == torch.float64 else v.float()) for v in (e.read() for e in entries)]


@contextmanager
def gathered_gradients(entries: Sequence[Entry], values: Sequence[nn.Parameter]) -> Iterator[None]:
    """During the block, `backward()` adds the entries' gradients to `values[i].grad` and keeps nothing else.

    The dense gradient of a weight exists only until its masked entries are read off, one weight after another.

    Args:
        entries: their parameters require a gradient during the block, whether the user froze them or not.
        values: the vectors `[k]` that collect, in the order of `entries`.
    """
    with ExitStack() as stack:
        for entry, value in zip(entries, values, strict=True):
            for parameter in entry.parameters:
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(True)
                hook = partial(_collect, entry.index, value)
                stack.callback(parameter.register_post_accumulate_grad_hook(hook).remove)
        yield


def _collect(index: Tensor, value: nn.Parameter, parameter: Tensor) -> None:
    if parameter.grad is None:
        return
    part = parameter.grad.reshape(-1)[index].to(value.dtype)
    parameter.grad = None
    value.grad = part if value.grad is None else value.grad + part


def _place(tensor: Tensor) -> tuple[object, ...]:
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
