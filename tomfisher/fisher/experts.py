"""Capturing fused experts: all experts of a mixture in one `[E, d_out, d_in]` parameter.

transformers lets a library register its own implementation of a mixture's experts; for the time of a run
ours computes the same output and hands every projection's input and output gradient to the capture, rows
sorted by (expert, sample), so that one `squared_gradient_` call with `targets` does all experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher import ops
from tomfisher.fisher.contributions import Accumulator

PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")
Watch = Callable[[str, Tensor, Tensor, "Routing"], Tensor]


@dataclass(frozen=True)
class Routing:
    """Which token goes to which expert, rows sorted by (expert, sample, position).

    Attributes:
        order: `[R]`, which choice a row is, choices counted token by token: choice c is slot c mod K of token
            c div K; a token with K choices has K rows, but of experts that other ranks hold there are none.
        samples: `[R]`, the sample of each row.
        per_expert: number of rows of each expert.
        offsets: `[E*B + 1]`, first row of each (expert, sample) segment, many of them empty, and the end.
        targets: `[E*B]`, expert of each segment.
    """

    order: Tensor
    samples: Tensor
    per_expert: list[int]
    offsets: Tensor
    targets: Tensor

    @classmethod
    def of(cls, chosen: Tensor, num_experts: int, batch_size: int) -> Routing:
        """Sort the choices `[B*T, K]` of a router; the host waits for the numbers of rows, and for nothing else.

        Args:
            chosen: expert of each token's K choices.
            num_experts: E, those of this rank where they are split over ranks; numbers from E on are others'.
            batch_size: B; tokens of one sample follow each other.
        """
        tokens, K = chosen.shape
        samples = torch.arange(tokens, device=chosen.device) * batch_size // tokens
        keys = (chosen * batch_size + samples[:, None]).flatten()
        keys, order = torch.sort(keys, stable=True)
        offsets = torch.searchsorted(keys, torch.arange(num_experts * batch_size + 1, device=keys.device))
        per_expert = offsets[::batch_size].diff().tolist()
        order = order[: sum(per_expert)]
        return cls(
            order,
            samples[order // K],
            per_expert,
            offsets,
            torch.arange(num_experts, device=keys.device).repeat_interleave(batch_size),
        )


def is_experts(module: nn.Module) -> bool:
    """Whether the module holds fused experts in the layout that transformers describes by attributes."""
    described = all(hasattr(module, name) for name in ("num_experts", "has_gate", "is_transposed", "config"))
    return (
        described
        and hasattr(module, "_apply_gate")
        and isinstance(getattr(module, "down_proj", None), Tensor)
    )


def forward(
    module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor, batch_size: int, watch: Watch
) -> Tensor:
    """Output of the experts: `Σ_k weights[t,k] · down(act(up(hidden[t])))` of the experts that each token chose.

    Args:
        module: the experts module.
        hidden: `[B*T, D]`.
        chosen: `[B*T, K]` expert numbers.
        weights: `[B*T, K]` routing weights.
        batch_size: B.
        watch: called as `watch(projection, output, input, routing)`; its result replaces the output.

    Returns:
        `[B*T, D]`, the dtype of `hidden`.
    """
    routing = Routing.of(chosen, module.num_experts, batch_size)
    # repeated, permuted and permuted back instead of gathered and scattered with repetitions: no sum here or in
    # the backward pass depends on the order in which a GPU gets to its terms
    K = chosen.shape[1]
    x = hidden.repeat_interleave(K, 0).index_select(0, routing.order)
    up = "gate_up_proj" if module.has_gate else "up_proj"
    y = watch(up, _project(module, up, x, routing), x, routing)
    inner = module._apply_gate(y) if module.has_gate else module.act_fn(y)
    out = watch("down_proj", _project(module, "down_proj", inner, routing), inner, routing)
    if getattr(module, "has_post_expert_norm", False):
        out = module.post_expert_norm(out)
    if len(out) == chosen.numel():
        choices = out.index_select(0, torch.argsort(routing.order))
    else:  # the others come from their ranks
        choices = out.new_zeros(chosen.numel(), out.shape[1]).index_copy(0, routing.order, out)
    return (choices.unflatten(0, (-1, K)) * weights[..., None]).sum(1).to(hidden.dtype)


def _project(module: Any, name: str, x: Tensor, routing: Routing) -> Tensor:
    """Each expert's rows times its matrix."""
    matrices: Tensor = getattr(module, name)
    bias = getattr(module, f"{name}_bias", None)
    parts = []
    for expert, rows in enumerate(x.split(routing.per_expert)):
        matrix = matrices[expert] if module.is_transposed else matrices[expert].T
        part = rows.to(matrix.dtype) @ matrix
        parts.append(part if bias is None else part + bias[expert])
    return torch.cat(parts)


@contextmanager
def implementation(modules: list[nn.Module], run: Callable[..., Tensor]) -> Iterator[None]:
    """Register `run(module, hidden, chosen, weights)` with transformers and have `modules` use it."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    key = f"tomfisher-{id(run)}"
    configs: dict[int, Any] = {id(m.config): m.config for m in modules}
    before = {i: config._experts_implementation for i, config in configs.items()}
    ALL_EXPERTS_FUNCTIONS[key] = run
    try:
        for config in configs.values():
            config._experts_implementation = key
        yield
    finally:
        for i, config in configs.items():
            config._experts_implementation = before[i]
        del ALL_EXPERTS_FUNCTIONS[key]


def contribution(
    module: nn.Module,
    accumulators: dict[str, Accumulator],
    grad_output: Tensor,
    x: Tensor,
    routing: Routing,
    products: dict[str, Any],
) -> None:
    """One projection of all experts: weight (and bias) by `squared_gradient_`, one segment per expert and sample."""
    segments: dict[str, Any] = {"offsets": routing.offsets, "targets": routing.targets, **products}
    bias_square: Tensor | None = None
    if "bias" in accumulators:  # before the weight is written, since it takes memory
        bias_square = torch.zeros_like(accumulators["bias"].F)
        ones = torch.ones_like(grad_output[:, :1])
        ops.squared_gradient_(bias_square[..., None], grad_output, ones, **segments)
    if "weight" in accumulators:
        target = accumulators["weight"]
        left, right = (x, grad_output) if module.is_transposed else (grad_output, x)
        if target.rows is not None:
            left = left[:, target.rows]
        ops.squared_gradient_(target.F, left, right.to(left.dtype), **segments)
    if bias_square is not None:
        accumulators["bias"].F.add_(bias_square)
