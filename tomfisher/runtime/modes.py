"""The modes in which a model is run: measuring, and frozen for gradients. What makes it faster here is on in both."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tomfisher.runtime.device import embedding_of
from tomfisher.runtime.frequencies import fresh_frequencies
from tomfisher.runtime.onednn import by_onednn
from tomfisher.runtime.scan import linear_scan


@contextmanager
def running(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (dropout is off), and what makes the model faster or more exact on this machine.

    Linear layers run `by_onednn` and state-space layers with the `linear_scan`, each where that is faster; rotary
    frequencies that grow with the text begin anew in every forward (`fresh_frequencies`). On any exit everything is
    put back, the training flag of every module too. Enter `measuring` or `frozen`, which enter this.

    Args:
        model: a transformers model.
    """
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with by_onednn(model), fresh_frequencies(model), linear_scan(model):
            yield
    finally:
        for module, flag in training:
            module.training = flag


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """`running`, in inference mode.

    Args:
        model: a transformers model.
    """
    with torch.inference_mode(), running(model):
        yield


@contextmanager
def frozen(model: nn.Module, trainable: tuple[nn.Parameter, ...] = ()) -> Iterator[None]:
    """`running`, and no parameter but `trainable` requires a gradient.

    Where the user enabled gradient checkpointing it stays in force (transformers itself switches it off outside
    training mode). The token vectors require a gradient, since a layer that the model itself checkpoints
    re-entrantly computes none where its input needs none. `requires_grad`, `.grad` and forwards are restored on any
    exit.

    Args:
        model: a transformers model.
        trainable: parameters whose gradient autograd shall compute.
    """
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    with ExitStack() as stack:
        stack.callback(_restore, before)
        for parameter, _, _ in before:
            parameter.grad = None
            parameter.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)
        stack.enter_context(running(model))
        embedding = embedding_of(model)
        if embedding is not None:
            alive = torch.zeros((), requires_grad=True)
            stack.callback(embedding.register_forward_hook(functools.partial(_keep_alive, alive)).remove)
        for layer in model.modules():
            if getattr(layer, "gradient_checkpointing", False) and _is_decoder_layer(layer):
                stack.callback(_checkpointed(layer))
        yield


class _Alive(torch.autograd.Function):
    """Identity whose result requires a gradient and is no leaf, so that the model may go on in place."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, alive: Tensor) -> Tensor:
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None]:
        return None, None


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


def _restore(before: list[tuple[nn.Parameter, bool, Tensor | None]]) -> None:
    for parameter, required, gradient in before:
        parameter.requires_grad_(required)
        parameter.grad = gradient
