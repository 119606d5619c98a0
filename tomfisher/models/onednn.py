"""Products of float32 matrices by oneDNN, where MKL leaves a part of the processor unused.

PyTorch multiplies float32 matrices on an x86 CPU with MKL, whose kernels are made for Intel's processors. oneDNN,
which is in the same library and does PyTorch's bfloat16 products, comes near the peak of others too: on an AMD EPYC
(Zen 4) 1.1 to 1.5 times MKL's rate on the layers of SmolLM2-135M, 2 times on its head with a few rows.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.models.structure import is_conv1d

# Smaller matrices cost less than the call: no difference at 256 x 256, twice the time at 128 x 128.
SMALLEST = 256 * 256


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
                    module.forward = _forward(module)
                    stack.callback(module.__dict__.pop, "forward", None)
        yield


def concerns(model: nn.Module) -> bool:
    """Whether `by_onednn` would do anything for this model here."""
    return outruns_mkl() and any(map(_concerned, model.modules()))


@functools.cache
def outruns_mkl() -> bool:
    """Whether PyTorch's float32 products run on MKL here, the processor is not Intel's, and oneDNN is there."""
    mkl = torch.backends.mkl.is_available() and platform.machine().lower() in ("x86_64", "amd64")
    onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return mkl and onednn and _processor_maker() not in (None, "GenuineIntel")


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
    plain = type(module) is nn.Linear or is_conv1d(module)
    if not plain or "forward" in module.__dict__:
        return False
    weight: Any = module.weight
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= SMALLEST
    )


def _forward(module: Any) -> Callable[..., Tensor]:
    """What replaces the module's forward."""
    original = module.forward
    transposed = is_conv1d(module)

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        (x,) = (*args, *kwargs.values())
        if not _suits(module, x):
            result: Tensor = original(x)
            return result
        weight = module.weight.detach()
        operands = (x, weight.t() if transposed else weight, module.bias)
        return (
            _Product.apply(*operands) if x.requires_grad and torch.is_grad_enabled() else product(*operands)
        )

    return forward


def _suits(module: Any, x: Tensor) -> bool:
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
    return (
        type(x) is Tensor
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not trained
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and not torch.compiler.is_compiling()
    )


def _processor_maker() -> str | None:
    """Such as "GenuineIntel" or "AuthenticAMD"; None where it is not known."""
    info = Path("/proc/cpuinfo")
    described = info.read_text() if info.is_file() else platform.processor()
    return next(
        (maker for maker in ("GenuineIntel", "AuthenticAMD", "HygonGenuine") if maker in described), None
    )
