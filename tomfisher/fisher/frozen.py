"""The state a model is in while its Fisher is taken or a part of it trained, and back exactly as it was afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tomfisher.models.onednn import by_onednn
from tomfisher.runtime.forward import embedding_of
from tomfisher.runtime.frequencies import fresh_frequencies


class _Alive(torch.autograd.Function):
    """Identity whose result requires a gradient and is no leaf, so that the model may go on in place."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, alive: Tensor) -> Tensor:
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None]:
        return None, None


@contextmanager
def frozen(model: nn.Module, trainable: tuple[nn.Parameter, ...] = ()) -> Iterator[None]:
    """Evaluation mode, and no parameter but `trainable` requires a gradient.

    Dropout is off. Where the user enabled gradient checkpointing it stays in force (transformers itself switches
    it off outside training mode). The token vectors require a gradient, since a layer that the model itself
    checkpoints re-entrantly computes none where its input needs none. Linear layers run `by_onednn` where that is
    faster. `requires_grad`, `.grad`, training flags and forwards are restored on any exit.

    Args:
        model: a transformers model.
        trainable: parameters whose gradient autograd shall compute.
    """
    training = {module: module.training for module in model.modules()}
    required = {p: p.requires_grad for p in model.parameters()}
    gradients = {p: p.grad for p in model.parameters()}
    with ExitStack() as stack:
        stack.callback(_restore, training, required, gradients)
        model.eval()
        for parameter in required:
            parameter.grad = None
            parameter.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)
        embedding = embedding_of(model)
        if embedding is not None:
            alive = torch.zeros((), requires_grad=True)
            stack.callback(embedding.register_forward_hook(functools.partial(_keep_alive, alive)).remove)
        stack.enter_context(by_onednn(model))
        stack.enter_context(fresh_frequencies(model))
        for layer in model.modules():
            if getattr(layer, "gradient_checkpointing", False) and _is_decoder_layer(layer):
                stack.callback(_checkpointed(layer))
        yield


def _keep_alive(alive: Tensor, module: nn.Module, args: Any, output: Any) -> Any:
    if not isinstance(output, Tensor) or output.requires_grad or not torch.is_grad_enabled():
        return output
    return _Alive.apply(output, alive)


def _is_decoder_layer(module: nn.Module) -> bool:
    return any(base.__name__ == "GradientCheckpointingLayer" for base in type(module).__mro__)


def _checkpointed(layer: nn.Module) -> Callable[[], None]:
    """Give this layer a forward that recomputes itself in the backward pass; return how to undo that."""
    shadowed = layer.__dict__.get("forward")
    original = layer.forward

    @functools.wraps(original)
    def recomputing(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(original, *args, use_reentrant=False, **kwargs)

    layer.forward = recomputing

    def undo() -> None:
        if shadowed is None:
            del layer.forward
        else:
            layer.forward = shadowed

    return undo


def _restore(
    training: dict[nn.Module, bool],
    required: dict[nn.Parameter, bool],
    gradients: dict[nn.Parameter, Tensor | None],
) -> None:
    for module, flag in training.items():
        module.training = flag
    for parameter, flag in required.items():
        parameter.requires_grad_(flag)
        parameter.grad = gradients[parameter]
