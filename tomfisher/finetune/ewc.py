"""Elastic weight consolidation: a penalty that holds weights where an earlier task needs them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from tomfisher.fisher import FisherDiagonal
from tomfisher.models.loading_report import first_of


class EWC(nn.Module):
    """λ/2 · Σ_i F_i (θ_i − θ*_i)², with θ* the weights at the time of the call: what a new task pays for moving them.

    Equivalent PyTorch::

        strength / 2 * sum((F[n] / N * (p - anchor[n]).square()).sum() for n, p in model.named_parameters() if n in F)

    Computed in float32, in float64 of float64 weights. The anchor has the weights' dtype, so that the penalty takes
    memory for the weights and F once more; `ewc.to(device)` moves both.

    Example::

        penalty = EWC(model, FisherDiagonal.load("stores/old-task"), strength=1e3)
        loss = model(**batch).loss + penalty()

    Args:
        model: whose weights are held. Parameters that do not require gradients do not move, and are left out.
        fisher: a Fisher diagonal on the old task, which is averaged over its samples, or any mapping from parameter
            name to tensor, which is taken as it is.
        strength: λ, at least 0.

    Raises:
        ValueError: F holds what is no parameter of the model, or in another shape, or nothing that is trained; or
            `strength` is out of range.

    Source:
        Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks (PNAS 2017), equation 3.
    """

    def __init__(self, model: nn.Module, fisher: Mapping[str, Tensor], strength: float) -> None:
        super().__init__()
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength must be a number of at least 0, got {strength}.")
        parameters = dict(model.named_parameters(remove_duplicate=False))
        wrong = [n for n, F in fisher.items() if n not in parameters or parameters[n].shape != F.shape]
        if wrong:
            raise ValueError(
                f"F is of another model: {len(wrong)} of its tensors are no parameters of it, or have another shape, "
                f"{first_of(wrong)}. Take F of this model."
            )
        self.strength = strength
        self.names = [name for name in fisher if parameters[name].requires_grad]
        if not self.names:
            raise ValueError("No parameter that F holds requires gradients, so there is nothing to hold.")
        self._held = [
            parameters[name] for name in self.names
        ]  # a list: they stay the model's parameters alone
        count = fisher.num_samples if isinstance(fisher, FisherDiagonal) else 1
        for i, (name, parameter) in enumerate(zip(self.names, self._held, strict=True)):
            mean = fisher[name].to(parameter.device) / count
            self.register_buffer(f"fisher_{i}", mean, persistent=False)
            self.register_buffer(f"anchor_{i}", parameter.detach().clone(), persistent=False)

    def forward(self) -> Tensor:
        """The penalty of the weights as they are now: 0-dimensional, in the unit of the loss that F is of."""
        device = self._held[0].device
        parts = [(F * moved.square()).sum().to(device) for _, F, moved in self._each()]
        return self.strength / 2 * torch.stack(parts).sum()

    @torch.no_grad()
    def add_gradients_(self) -> None:
        """Add the penalty's gradient, λ F (θ − θ*), to `grad` of each weight: what `backward` of `forward()` does."""
        for parameter, F, moved in self._each():
            gradient = (self.strength * F * moved).to(parameter.dtype)
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def _each(self) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        """Each weight, its F and how far it has moved, the last two in float32 or float64."""
        for i, parameter in enumerate(self._held):
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            F, anchor = getattr(self, f"fisher_{i}"), getattr(self, f"anchor_{i}")
            yield parameter, F.to(dtype), parameter.to(dtype) - anchor.to(dtype)
