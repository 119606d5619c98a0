"""`square_accumulate_`: add squared gradients to Fisher tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tomfisher.ops.checks import DTYPES, is_expanded, overlap
from tomfisher.ops.dispatch import Impl, register, resolve


@torch.no_grad()
def square_accumulate_(F_list: Sequence[Tensor], grad_list: Sequence[Tensor], impl: Impl = "auto") -> None:
    """Add the elementwise square of each gradient to its Fisher tensor, in float32: `F += g.float() ** 2`.

    Args:
        F_list: float32 tensors, changed in place; none lies between the first and the last entry of another or of
            a gradient.
        grad_list: float16, bfloat16, float32 or float64 gradients of the same shapes and on the same device.
        impl: "auto", "triton", "cpp" or "reference".

    Raises:
        TypeError: an F is not float32 or a gradient is of none of these dtypes.
        ValueError: the lists' lengths, or a pair's shapes, differ; or tensors are on several devices, or an F
            shares memory with another tensor or with itself.
    """
    if len(F_list) != len(grad_list):
        raise ValueError(
            f"F_list and grad_list must be of one length, got {len(F_list)} and {len(grad_list)}."
        )
    for position, (F, gradient) in enumerate(zip(F_list, grad_list, strict=True)):
        _check_pair(position, F, gradient, F_list[0].device)
    if F_list:
        _op(F_list, grad_list, impl)


@torch.library.custom_op("tomfisher::square_accumulate_", mutates_args=("F_list",))
def _op(F_list: Sequence[Tensor], grad_list: Sequence[Tensor], impl: str) -> None:
    _check_apart(F_list, grad_list)  # here, where every tensor has memory
    _, run = resolve("square_accumulate_", impl, F_list[0].device)
    run(F_list, grad_list)


_op.register_fake(lambda *_: None)


@register("square_accumulate_", "reference")
def _reference(F_list: Sequence[Tensor], grad_list: Sequence[Tensor]) -> None:
    for F, gradient in zip(F_list, grad_list, strict=True):
        g = gradient.float()
        F.addcmul_(g, g)


def _check_pair(position: int, F: Tensor, gradient: Tensor, device: torch.device) -> None:
    if F.dtype != torch.float32 or gradient.dtype not in DTYPES:
        raise TypeError(
            f"Pair {position}: F must be float32 and the gradient float16, bfloat16, float32 or float64, "
            f"got {F.dtype} and {gradient.dtype}."
        )
    if F.shape != gradient.shape or not F.device == gradient.device == device:
        raise ValueError(
            f"Pair {position}: F and gradient must share shape and device, got {tuple(F.shape)} on {F.device} "
            f"and {tuple(gradient.shape)} on {gradient.device}; the first F is on {device}."
        )
    if is_expanded(F):
        raise ValueError(f"Pair {position}: F is an expanded view: its entries share memory. Pass a clone.")


def _check_apart(F_list: Sequence[Tensor], grad_list: Sequence[Tensor]) -> None:
    pair = overlap(F_list, grad_list, apart=True)
    if pair is None:
        return
    count = len(F_list)
    first, second = (f"F_list[{i}]" if i < count else f"grad_list[{i - count}]" for i in pair)
    raise ValueError(
        f"{first} and {second} share memory: the sum would depend on the order. Pass a clone of one, "
        "or call once for each."
    )
