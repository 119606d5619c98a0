"""Definition of `rope_energy`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tomfisher.ops.dispatch import register


@register("rope_energy", "reference")
def rope_energy_reference(x: Tensor, pairs: int, interleaved: bool, lengths: Sequence[int]) -> Tensor:
    """Sum energy and norm of every rotary pair over the valid tokens.

    Args:
        x: `[B, T, H, D]`.
        pairs: half the number of rotated dimensions.
        interleaved: pairs are (2p, 2p + 1) rather than (p, p + pairs).
        lengths: valid tokens of each sequence.

    Returns:
        float32 `[2, H, pairs]`: Σ x_i² + x_j² and Σ √(x_i² + x_j²).
    """
    total = torch.zeros(2, x.shape[2], pairs, dtype=torch.float32, device=x.device)
    for sequence, length in zip(x, lengths, strict=True):
        rotated = sequence[:length, :, : 2 * pairs].float().square()
        i, j = (rotated[..., 0::2], rotated[..., 1::2]) if interleaved else rotated.split(pairs, dim=-1)
        energy = i + j
        total += torch.stack([energy.sum(0), energy.sqrt().sum(0)])
    return total
