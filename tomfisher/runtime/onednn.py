"""Products of float32 matrices by oneDNN, where MKL leaves a part of the processor unused.

PyTorch multiplies float32 matrices on an x86 CPU with MKL, whose kernels are made for Intel's processors. oneDNN,
which is in the same library and does PyTorch's bfloat16 products, comes nearer to the peak of an AMD EPYC (Zen 4):
`tomfisher bench linear`, benchmarks/README.md.
"""

from __future__ import annotations

import functools
import platform
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.runtime.structure import is_conv1d

# Smaller matrices cost less than the call: no difference at 256 x 256, twice the time at 128 x 128.
SMALLEST = 256 * 256
_LINEAR_FORWARD = nn.Linear.forward


@contextmanager
def by_onednn(model: nn.Module) -> Iterator[None]:
    """Compute the model's linear layers with oneDNN while the block runs, where `outruns_mkl()`.

    The same numbers as `torch.nn.functional.linear` up to rounding, with a gradient for the input. It concerns
    `nn.Linear` and transformers' `Conv1D` in float32 on the CPU, from `SMALLEST` entries on; a layer whose forward
    somebody else has replaced, and a call that needs a gradient of the weights, go the model's own way.
    The forwards are put back on any exit.

    Args:
        model: any module.
    """
    with ExitStack() as stack:
        if outruns_mkl():
            for module in model.modules():
                if _concerned(module):
                    # a method, so that a copy of the model made meanwhile computes with its own weights
                    module.forward = types.MethodType(_forward, module)
                    stack.callback(_put_back, module, module.forward)
        yield


def concerns(model: nn.Module) -> bool:
    """Whether `by_onednn` would do anything for this model here."""
    return outruns_mkl() and bool(torch.backends.mkldnn.enabled) and any(map(_concerned, model.modules()))


@functools.cache
def outruns_mkl() -> bool:
    """Whether float32 products run on MKL here, and the processor is one with AVX-512 that is not Intel's.

    Measured on Zen 4 alone: elsewhere PyTorch's own choice stays.
    """
    mkl = torch.backends.mkl.is_available() and platform.machine().lower() in ("x86_64", "amd64")
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return mkl and has_onednn() and wide and _processor_maker() not in (None, "GenuineIntel")


def has_onednn() -> bool:
    """Whether `product` is there."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` by oneDNN, for float32 on the CPU.

    Args:
        x: `[..., d_in]`, at least one row.
        weight: `[d_out, d_in]`, of any strides.
        bias: `[d_out]`.

    Returns:
        `[..., d_out]`.
    """
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


class _Product(torch.autograd.Function):
    """`product` with the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return product(grad_output, weight.t()), None, None


def _concerned(module: nn.Module) -> bool:
    if not _is_stock(type(module)) or "forward" in module.__dict__:
        return False
    weight: Any = module.weight
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= SMALLEST
    )


def _is_stock(kind: type[nn.Module]) -> bool:
    """`nn.Linear` or `Conv1D` itself: a class derived from one may compute something else."""
    if kind is nn.Linear:
        return nn.Linear.forward is _LINEAR_FORWARD
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def _forward(module: Any, *args: Any, **kwargs: Any) -> Tensor:
    """What replaces the forward of a module that is concerned."""
    weight = module.weight.t() if is_conv1d(module) else module.weight
    if not _suits(module, weight, args, kwargs):
        result: Tensor = type(module).forward(module, *args, **kwargs)
        return result
    operands = (*args, weight.detach(), module.bias)
    return (
        _Product.apply(*operands) if torch.is_grad_enabled() and args[0].requires_grad else product(*operands)
    )


def _suits(module: Any, weight: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether it is a call `module(x)` that oneDNN computes as PyTorch would."""
    if len(args) != 1 or kwargs or type(args[0]) is not Tensor:
        return False
    x, bias = args[0], module.bias
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in (module.weight, bias) if p is not None)
    return (
        all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (x, weight, bias) if t is not None)
        and x.shape[-1:] == weight.shape[1:]
        and x.numel() > 0
        and not trained
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and not torch.compiler.is_compiling()
    )


def _put_back(module: nn.Module, replaced: Any) -> None:
    if module.__dict__.get("forward") is replaced:
        del module.forward


def _processor_maker() -> str | None:
    """Such as "GenuineIntel" or "AuthenticAMD"; None where it is not known."""
    info = Path("/proc/cpuinfo")
    described = info.read_text() if info.is_file() else platform.processor()
    return next(
        (maker for maker in ("GenuineIntel", "AuthenticAMD", "HygonGenuine") if maker in described), None
    )
