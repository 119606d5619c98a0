"""Finding the samples in whatever shape a module was given its input."""

from __future__ import annotations

from torch import Tensor


class LayoutError(ValueError):
    """A module's tensor does not show where one sample ends and the next begins."""


def per_sample(tensor: Tensor, batch_shape: tuple[int, int]) -> Tensor:
    """View `[..., D]` as `[B, T', D]`: one row of token vectors per sample.

    Understood are `[B, ..., D]`, tensors flattened to `[B*T, ..., D]` (OPT's fc1 and fc2, routers, shared
    experts) and `[1, B*T, D]`. With one sample every shape is that sample's.

    Args:
        tensor: a module's input, output or output gradient.
        batch_shape: `(B, T)` of the batch that is running.

    Returns:
        A view where possible.

    Raises:
        LayoutError: the leading dimensions are neither B nor B*T.
    """
    B, T = batch_shape
    D = tensor.shape[-1]
    leading = tuple(tensor.shape[:-1])
    flattened = leading[:1] == (B * T,) or leading[:2] == (1, B * T)
    if B == 1 or (leading and leading[0] == B) or flattened:
        return tensor.reshape(B, -1, D)
    raise LayoutError(f"shape {tuple(tensor.shape)} in a batch of {B} samples x {T} tokens")
