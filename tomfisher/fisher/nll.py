"""Negative log-likelihood with one buffer of the logits' size in its backward pass, where autograd keeps three."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tomfisher.sample import IGNORED

# logits at a time: on the CPU 16 MiB in float32, which a cache holds; on a GPU few enough launches
CHUNK, GPU_CHUNK = 1 << 22, 1 << 26


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """`-log softmax(logits)[target]` of every row, 0 where the target is ignored; differentiable once.

    Equivalent PyTorch::

        torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="none")

    Args:
        logits: `[R, V]`; 16-bit logits are read in float32 and their gradient is rounded once, at the end.
        targets: int64 `[R]`, on the same device; -100 = ignored.

    Returns:
        float32 (float64 for float64 logits), shape `[R]`, nats.
    """
    nll: Tensor = _Likelihood.apply(logits, targets)
    return nll


class _Likelihood(torch.autograd.Function):
    """Keeps the logits and two numbers per row; the gradient is `(softmax - onehot) · upstream`.

    The largest logit and the logarithm of the sum stay apart: rounding their sum would cost as many digits of the
    softmax as the logits are large.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        largest = logits.amax(1) if len(logits) else logits.new_empty(0)
        log_sum = torch.empty(len(logits), dtype=dtype, device=logits.device)
        for rows in _chunks(logits):
            below = logits[rows].to(dtype) - largest[rows, None]
            torch.sum(below.exp_(), 1, out=log_sum[rows])
        log_sum.log_()
        ctx.save_for_backward(logits, targets, largest, log_sum)
        of_target = logits.gather(1, targets.clamp_min(0)[:, None]).squeeze(1)
        nll = log_sum - (of_target.to(dtype) - largest)
        return nll.masked_fill_(targets == IGNORED, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, targets, largest, log_sum = ctx.saved_tensors
        upstream = upstream.masked_fill(targets == IGNORED, 0)[:, None]
        at = targets.clamp_min(0)[:, None]
        gradient = torch.empty_like(logits)
        for rows in _chunks(logits):
            part = logits[rows].to(log_sum.dtype) - largest[rows, None]
            part.sub_(log_sum[rows, None]).exp_()
            part.scatter_add_(1, at[rows], part.new_full((len(part), 1), -1))
            torch.mul(part, upstream[rows], out=part)
            gradient[rows] = part
        return gradient, None


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Row ranges of at most so many logits, or one row."""
    chunk = CHUNK if logits.device.type == "cpu" else GPU_CHUNK
    step = max(1, chunk // max(1, logits.shape[1]))
    return (slice(start, start + step) for start in range(0, len(logits), step))
