"""Weights whose memory is given back for a time: the parameter stays, its numbers are read again when needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


def empty_shell(like: Tensor, offset: int = 0) -> nn.Parameter:
    """A parameter on the CPU with the dtype, shape and strides of `like`, without memory for its numbers.

    Args:
        like: on any device; where its entries leave gaps or overlap, the shell is contiguous.
        offset: entries by which the parameter begins behind its memory, which begins at a multiple of 64 bytes.
    """
    strides = torch.empty_like(like, device="meta").stride()
    storage = torch.UntypedStorage(0)
    empty = torch.empty(0, dtype=like.dtype).set_(storage, offset, like.shape, strides)
    free(empty)
    return nn.Parameter(empty, requires_grad=False)


def allocate(tensor: Tensor) -> Tensor:
    """Give a freed tensor memory again; its numbers are undefined.

    Returns:
        A plain tensor of the same memory: writing to it leaves the version counter of `tensor` alone, so that a graph
        that holds `tensor` stays valid.
    """
    size = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    size += int(tensor.storage_offset())
    tensor.untyped_storage().resize_(size * tensor.element_size() if tensor.numel() else 0)
    return tensor.data


def free(tensor: Tensor) -> None:
    """Give a tensor's memory back. Whoever reads it before `allocate` reads memory that is not there."""
    tensor.untyped_storage().resize_(0)


def is_freed(tensor: Tensor) -> bool:
    """Whether a tensor's memory was given back."""
    held = type(tensor) in _PLAIN and not tensor.is_meta and tensor.layout == torch.strided
    return held and tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def freed_weights(model: nn.Module) -> list[str]:
    """Names of the parameters whose memory was given back."""
    return [name for name, parameter in model.named_parameters() if is_freed(parameter)]


def missing_weights(model: nn.Module) -> list[str]:
    """Names of the freed parameters that a forward would read now: not those of layers that are passed over."""
    freed = freed_weights(model)
    passed = (
        tuple(f"{name}." for name, module in model.named_modules() if _is_passed_over(module))
        if freed
        else ()
    )
    return [name for name in freed if not name.startswith(passed)]


def _is_passed_over(module: nn.Module) -> bool:
    return getattr(vars(module).get("forward"), "__module__", None) == "tomfisher.runtime.layerwise"


def is_streamed(model: nn.Module) -> bool:
    """Whether some of a model's weights are not in memory at the moment: `tomfisher.models.opened` reads them."""
    return any(is_freed(parameter) for parameter in model.parameters())


def refuse_calls(model: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Make modules whose weights are freed raise when they are called, where they would read memory that is not there.

    A layer looks at all of its parameters, since some are read past their module; a module outside the layers at its
    own. A layer that is passed over (`tomfisher.runtime.layerwise`) is let be.

    Args:
        model: the model.
        layers: modules of it that are loaded as a whole.
    """
    inside: set[nn.Module] = set()
    for layer in layers:
        layer.register_forward_pre_hook(_refuse_freed)
        inside.update(layer.modules())
    for module in model.modules():
        if module not in inside and any(p is not None for p in module._parameters.values()):
            module.register_forward_pre_hook(_refuse_freed_own)


def _refuse_freed(module: nn.Module, args: Any, recurse: bool = True) -> None:
    if _is_passed_over(module):
        return
    for name, parameter in module.named_parameters(recurse=recurse):
        if is_freed(parameter):
            raise RuntimeError(
                f"{type(module).__name__} was called while its {name} is still in its file. Load it first, with "
                "OpenedModel.load, or the whole model with tomfisher.models.load_model."
            )


def _refuse_freed_own(module: nn.Module, args: Any) -> None:
    _refuse_freed(module, args, recurse=False)
