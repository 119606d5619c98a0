"""`weight_sums`: what the mean of almost all entries of a tensor can be computed from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tomfisher.ops.checks import DTYPES
from tomfisher.ops.dispatch import Impl, register, resolve

_ROW = 1 << 14  # entries that torch adds up, in one order whatever the thread count
_CHUNK = 1 << 18  # entries held in float64 at one time


@torch.no_grad()
def weight_sums(weights: Sequence[Tensor], impl: Impl = "auto") -> Tensor:
    """Sum of the entries of each tensor, and sum of their absolute values.

    Equivalent PyTorch: `torch.stack([torch.stack([w.double().sum(), w.double().abs().sum()]) for w in weights])`.

    The order of additions is fixed: the bits depend neither on the thread count nor on what else is in the
    list. An entry passes through at most 64 float64 roundings (in tensors of up to 2^31 entries), so the first
    sum is off by at most `2^-47` times the second, whatever the values.

    Args:
        weights: float16, bfloat16, float32 or float64 tensors of any shape and strides, on one device.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        float64 `[n, 2]` on the weights' device; the sum is NaN or infinite where an entry is.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: devices differ.
    """
    for i, weight in enumerate(weights):
        if weight.dtype not in DTYPES:
            raise TypeError(
                f"weights[{i}] must be float16, bfloat16, float32 or float64, got {weight.dtype}."
            )
        if weight.device != weights[0].device:
            raise ValueError(
                f"All weights must be on one device, got weights[{i}] on {weight.device} and weights[0] on "
                f"{weights[0].device}. Call once per device."
            )
    return _op(weights, impl) if weights else torch.empty(0, 2, dtype=torch.float64)


@torch.library.custom_op("tomfisher::weight_sums", mutates_args=())
def _op(weights: Sequence[Tensor], impl: str) -> Tensor:
    _, run = resolve("weight_sums", impl, weights[0].device)
    return run(weights)


@_op.register_fake
def _(weights: Sequence[Tensor], impl: str) -> Tensor:
    return weights[0].new_empty((len(weights), 2), dtype=torch.float64)


@register("weight_sums", "reference")
def _reference(weights: Sequence[Tensor]) -> Tensor:
    """Sum and sum of absolute values of each tensor; NaN where an entry is not finite."""
    return torch.tensor([_sums(w) for w in weights], dtype=torch.float64, device=weights[0].device)


def _sums(weight: Tensor) -> tuple[float, float]:
    signed: list[float] = []
    absolute: list[float] = []
    for _, chunk in chunks(weight):
        signed += row_sums(chunk)
        absolute += row_sums(chunk.abs_())
    return exact_total(signed), exact_total(absolute)


def chunks(weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Copies in float64 of successive pieces of a tensor, each with its first flat position.

    A non-contiguous weight is copied first.
    """
    flat = weight.detach().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        yield start, flat[start : start + _CHUNK].to(torch.float64, copy=True)


def row_sums(vector: Tensor) -> list[float]:
    """Sums of successive rows of fixed length of a float64 vector; torch adds a row up by cascades."""
    whole = vector.numel() // _ROW * _ROW
    sums = vector[:whole].view(-1, _ROW).sum(1).tolist()
    return [*sums, vector[whole:].sum().item()]


def exact_total(partial: list[float]) -> float:
    """Correctly rounded sum; NaN if a summand is not finite or the sum overflows."""
    try:
        return math.fsum(partial) if all(map(math.isfinite, partial)) else math.nan
    except OverflowError:
        return math.nan
