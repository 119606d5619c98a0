"""`square_accumulate_`: add squared gradients to Fisher tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import tomfisher.ops.reference.square_accumulate  # noqa: F401  (registers the definition)
from tomfisher.ops.dispatch import Impl, resolve


def square_accumulate_(F_list: Sequence[Tensor], grad_list: Sequence[Tensor], impl: Impl = "auto") -> None:
    """Add the elementwise square of each gradient to its Fisher tensor, in float32: `F += g.float() ** 2`.

    Args:
        F_list: float32 tensors, changed in place.
        grad_list: gradients of the same shapes and devices, any floating-point dtype.
        impl: "auto", "triton", "cpp" or "reference".

    Raises:
        TypeError: an F is not float32 or a gradient is no floating-point tensor.
        ValueError: the lists' lengths, or a pair's shapes or devices, differ.
    """
    if len(F_list) != len(grad_list):
        raise ValueError(
            f"F_list and grad_list must be of one length, got {len(F_list)} and {len(grad_list)}."
        )
    for position, (F, gradient) in enumerate(zip(F_list, grad_list, strict=True)):
        if F.dtype != torch.float32 or not gradient.dtype.is_floating_point:
            raise TypeError(
                f"Pair {position}: F must be float32 and the gradient floating-point, "
                f"got {F.dtype} and {gradient.dtype}."
            )
        if F.shape != gradient.shape or F.device != gradient.device:
            raise ValueError(
                f"Pair {position}: F and gradient must share shape and device, got {tuple(F.shape)} on {F.device} "
                f"and {tuple(gradient.shape)} on {gradient.device}."
            )
    if F_list:
        _, run = resolve("square_accumulate_", impl, F_list[0].device)
        run(F_list, grad_list)
