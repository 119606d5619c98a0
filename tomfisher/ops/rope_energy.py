"""`rope_energy`: how much of the queries or keys lives in each rotary frequency pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

import tomfisher.ops.reference.rope_energy  # noqa: F401  (registers the definition)
from tomfisher.ops.dispatch import Impl, resolve
from tomfisher.ops.dtypes import ACTIVATIONS

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


def valid_lengths(lengths: Sequence[int] | Tensor | None, batch: int, longest: int) -> list[int]:
    """The number of valid positions of each sequence.

    Args:
        lengths: what the caller gave; None: all positions.
        batch: number of sequences.
        longest: positions of the padded batch.

    Raises:
        ValueError: not one number from 0 to `longest` for each sequence.
    """
    if lengths is None:
        return [longest] * batch
    counts = [int(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]
    if len(counts) != batch or any(not 0 <= n <= longest for n in counts):
        raise ValueError(f"lengths must be {batch} numbers between 0 and {longest}, got {counts[:8]}.")
    return counts


@torch.library.custom_op("tomfisher::rope_energy", mutates_args=())
def _op(x: Tensor, pairs: int, interleaved: bool, lengths: Sequence[int], impl: str) -> Tensor:
    _, run = resolve("rope_energy", impl, x.device)
    return run(x, pairs, interleaved, lengths)


@_op.register_fake
def _(x: Tensor, pairs: int, interleaved: bool, lengths: Sequence[int], impl: str) -> Tensor:
    return x.new_empty(2, x.shape[2], pairs, dtype=torch.float32)
