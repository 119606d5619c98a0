"""The selective scan of Mamba and Jamba with a backward pass that is linear in the length.

transformers' plain-PyTorch scan indexes the discretised tensors step by step; autograd answers every index with
a gradient as large as the whole tensor, so its backward pass is quadratic in the length. Here both passes walk
over the time once, and each step works on one `[B, I, N]` state.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MODULE_OF = {
    name: f"transformers.models.{name}.modeling_{name}" for name in ("mamba", "jamba")
}  # by model type
NAME = "mamba_selective_scan"
LINEAR, TRANSFORMERS = "linear", "transformers"


class _Scan(torch.autograd.Function):
    """h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t from h_0 = 0, y_t = h_t C_t.

    Shapes: u, dt `[T, B, I]`; A `[I, N]`; B, C `[T, B, N]`; gives y `[T, B, I]` and the last state `[B, I, N]`.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        states = u.new_zeros((len(u) + 1, *u.shape[1:], A.shape[1]))
        y = torch.empty_like(u)
        for t, drive in enumerate(dt * u):
            decay = (dt[t].unsqueeze(-1) * A).exp_()
            torch.addcmul(drive.unsqueeze(-1) * B[t].unsqueeze(1), decay, states[t], out=states[t + 1])
            torch.matmul(states[t + 1], C[t].unsqueeze(-1), out=y[t].unsqueeze(-1))
        ctx.save_for_backward(u, dt, A, B, C, states)
        last = states[-1].clone()
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        u, dt, A, B, C, states = ctx.saved_tensors
        grad_y = grads[0].contiguous()
        grad_drive, grad_dt, grad_A = torch.empty_like(u), torch.empty_like(dt), torch.zeros_like(A)
        grad_B, grad_C = torch.empty_like(B), torch.empty_like(C)
        drive, carried = dt * u, torch.zeros_like(states[0])
        for t in reversed(range(len(u))):
            decay = (dt[t].unsqueeze(-1) * A).exp_()
            grad_state = torch.addcmul(carried, grad_y[t].unsqueeze(-1), C[t].unsqueeze(1))
            grad_C[t] = torch.matmul(grad_y[t].unsqueeze(1), states[t + 1]).squeeze(1)
            grad_B[t] = torch.matmul(drive[t].unsqueeze(1), grad_state).squeeze(1)
            grad_drive[t] = torch.matmul(grad_state, B[t].unsqueeze(-1)).squeeze(-1)
            carried = grad_state.mul_(decay)
            exponent = carried * states[t]
            grad_dt[t] = (exponent * A).sum(-1)
            grad_A += torch.einsum("bin,bi->in", exponent, dt[t])
        return grad_drive * dt, grad_dt.addcmul_(grad_drive, u), grad_A, grad_B, grad_C


def selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba's selective scan from the zero state, with the arguments of transformers' function.

    `h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t`, `y_t = (h_t C_t + D x_t) · silu(z_t)`.

    Args:
        hidden_states: x, `[B, I, T]`.
        dt: step sizes, `[B, I, T]`.
        A: `[I, N]`, negative.
        B: `[B, N, T]`.
        C: `[B, N, T]`.
        D: skip weights, `[I]`.
        z: gate, `[B, I, T]`.
        delta_bias: added to `dt`, `[I]`.
        delta_softplus: take the softplus of `dt`, after the bias.
        return_last_state: also give the state after the last token (no gradient flows through it).

    Returns:
        y `[B, I, T]`, and with `return_last_state` also `[B, I, N]`.

    Source:
        Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752.
    """
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype).unsqueeze(-1)
    if delta_softplus:
        dt = functional.softplus(dt)
    parts = (hidden_states.permute(2, 0, 1), dt.permute(2, 0, 1), A, B.permute(2, 0, 1), C.permute(2, 0, 1))
    y, last = _Scan.apply(*(part.to(A.dtype).contiguous() for part in parts))
    output = y.permute(1, 2, 0)
    if D is not None:
        output = output + hidden_states * D.unsqueeze(-1)
    if z is not None:
        output = output * functional.silu(z)
    output = output.to(hidden_states.dtype)
    return (output, last) if return_last_state else output


def scan_of(model: Any) -> str | None:
    """Which scan `linear_scan` runs a model with, for the provenance.

    Args:
        model: a causal language model of transformers, on its device.

    Returns:
        "linear"; "transformers" on another device than the CPU, where that scan may be a fused kernel, and with a
        release of transformers that keeps its scan elsewhere; None for a model without such a scan.
    """
    home = MODULE_OF.get(str(getattr(getattr(model, "config", None), "model_type", None)))
    if home is None:
        return None
    on_cpu = next(model.parameters()).device.type == "cpu"
    return LINEAR if on_cpu and hasattr(importlib.import_module(home), NAME) else TRANSFORMERS


@contextlib.contextmanager
def linear_scan(model: Any) -> Iterator[None]:
    """Let Mamba and Jamba on the CPU use `selective_scan` for the time of the block, in this process.

    Numbers below the smallest normal one count as zero meanwhile: states decay to them, and processors are slow
    there. A release of transformers that keeps its scan elsewhere runs its own, slower and equally right, with a
    warning.

    Args:
        model: a causal language model of transformers, on its device; other models are left alone.
    """
    scan = scan_of(model)
    if scan != LINEAR:
        if scan == TRANSFORMERS and next(model.parameters()).device.type == "cpu":
            _warn_of_another_release(model.config.model_type)
        yield
        return
    module = importlib.import_module(MODULE_OF[model.config.model_type])
    original = getattr(module, NAME)
    flushed = float(torch.tensor(1e-40) * 1) == 0
    torch.set_flush_denormal(True)
    setattr(module, NAME, selective_scan)
    try:
        yield
    finally:
        setattr(module, NAME, original)
        torch.set_flush_denormal(flushed)


def _warn_of_another_release(kind: str) -> None:
    warnings.warn(
        f"transformers {importlib.metadata.version('transformers')} has no {MODULE_OF[kind]}.{NAME}, so {kind} runs "
        "with the scan of transformers: slower, the same up to rounding. Install another release of transformers for "
        "the linear one.",
        stacklevel=2,
    )
