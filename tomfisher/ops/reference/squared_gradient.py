"""Definition of `squared_gradient_`: one gradient per segment, squared, added."""

from __future__ import annotations

import torch
from torch import Tensor

from tomfisher.ops.dispatch import register


@register("squared_gradient_", "reference")
def squared_gradient_reference(
    F: Tensor, grad_output: Tensor, input: Tensor, bounds: list[tuple[int, int]], targets: list[int] | None
) -> None:
    """Add the squared weight gradient of every segment to F, one segment at a time.

    Args:
        F: fp32 `[d_out, d_in]`, or `[E, d_out, d_in]` with `targets`.
        grad_output: `[N, d_out]`, all segments one after another.
        input: `[N, d_in]`.
        bounds: first and last-plus-one row of each segment.
        targets: slice of F that each segment adds to.
    """
    # all memory is taken before the first write, so running out of it leaves F as it was
    gradient = torch.empty(F.shape[-2:], dtype=torch.float32, device=F.device)
    Y, X = grad_output.float(), input.float()
    for segment, (start, stop) in enumerate(bounds):
        if start == stop:
            continue
        torch.mm(Y[start:stop].T, X[start:stop], out=gradient)
        (F if targets is None else F[targets[segment]]).addcmul_(gradient, gradient)
