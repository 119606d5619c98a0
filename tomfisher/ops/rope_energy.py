"""`rope_energy`: how much of the queries or keys lives in each rotary frequency pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tomfisher.ops.checks import ACTIVATIONS, valid_lengths
from tomfisher.ops.dispatch import Impl, register, resolve

Layout = Literal["half", "interleaved"]


class RopeEnergy(NamedTuple):
    """Sums over tokens; those of several batches add up, and dividing by `tokens` gives means.

    Attributes:
        energy: `[H, rotary_dim // 2]` float32, Σ x_i² + x_j² per head and frequency pair.
        norm: `[H, rotary_dim // 2]` float32, Σ √(x_i² + x_j²).
        tokens: how many tokens were summed over.
    """

    energy: Tensor
    norm: Tensor
    tokens: int


def rope_energy(
    x: Tensor,
    layout: Layout = "half",
    rotary_dim: int | None = None,
    lengths: Sequence[int] | Tensor | None = None,
    impl: Impl = "auto",
) -> RopeEnergy:
    """Sum energy and norm of every rotary pair of queries or keys over the tokens.

    Equivalent PyTorch, for layout "half" without padding::

        i, j = x[..., :rotary_dim].float().chunk(2, dim=-1)
        energy = (i**2 + j**2).sum((0, 1))
        norm = (i**2 + j**2).sqrt().sum((0, 1))

    A rotation keeps both, so queries and keys may be taken before or after it. Sums are float32; squares of
    entries beyond ±1.3e19 overflow to infinity, and a NaN makes its pair NaN.

    Args:
        x: queries or keys, `[B, T, H, D]` with any strides (of `[B, H, T, D]` give `x.transpose(1, 2)`);
            float16, bfloat16 or float32.
        layout: "half" pairs dimension i with i + rotary_dim / 2 (Llama, GPT-NeoX); "interleaved" pairs 2i with
            2i + 1 (GPT-J).
        rotary_dim: how many leading dimensions of a head are rotated, even; the others are ignored. None: all.
        lengths: valid leading tokens of each sequence; None: all.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        A `RopeEnergy` on the device of x.

    Raises:
        TypeError: x has another dtype.
        ValueError: shape, layout, rotary_dim or lengths do not fit.
    """
    if x.dtype not in ACTIVATIONS:
        raise TypeError(f"x must be float16, bfloat16 or float32, got {x.dtype}. Convert it first.")
    if x.ndim != 4:
        raise ValueError(f"x must be [B, T, H, D], got shape {tuple(x.shape)}.")
    if layout not in ("half", "interleaved"):
        raise ValueError(f"layout must be 'half' or 'interleaved', got {layout!r}.")
    width = x.shape[3] if rotary_dim is None else rotary_dim
    if width % 2 or not 0 < width <= x.shape[3]:
        raise ValueError(f"rotary_dim must be even and between 2 and {x.shape[3]} (the head), got {width}.")
    counts = valid_lengths(lengths, x.shape[0], x.shape[1])
    energy, norm = _op(x.detach(), width // 2, layout == "interleaved", counts, impl).unbind()
    return RopeEnergy(energy, norm, sum(counts))


@torch.library.custom_op("tomfisher::rope_energy", mutates_args=())
def _op(x: Tensor, pairs: int, interleaved: bool, lengths: Sequence[int], impl: str) -> Tensor:
    _, run = resolve("rope_energy", impl, x.device)
    return run(x, pairs, interleaved, lengths)


@_op.register_fake
def _(x: Tensor, pairs: int, interleaved: bool, lengths: Sequence[int], impl: str) -> Tensor:
    return x.new_empty(2, x.shape[2], pairs, dtype=torch.float32)


@register("rope_energy", "reference")
def _reference(x: Tensor, pairs: int, interleaved: bool, lengths: Sequence[int]) -> Tensor:
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
