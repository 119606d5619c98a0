"""Finding the samples in whatever shape a module was given its input."""

from __future__ import annotations

from torch import Tensor


class LayoutError(ValueError):
    """A module's tensor does not show where one sample ends and the next begins."""


def per_sample(tensor: Tensor, batch_shape: tuple[int, int]) -> Tensor:
    """View `[..., D]` as `[B, T', D]`: one row of token vectors per sample.

    Args:
        tensor: a module's input, output or output gradient.
        batch_shape: `(B, T)` of the batch that is running.

    Returns:
        A view where possible.

    Raises:
        LayoutError: `kind_of` the shape is None. With one sample every shape is that sample's.
    """
    B, T = batch_shape
    if B > 1 and kind_of(tensor, batch_shape) is None:
        raise LayoutError(f"shape {tuple(tensor.shape)} in a batch of {B} samples x {T} tokens")
    return tensor.reshape(B, tensor.shape[:-1].numel() // B, tensor.shape[-1])


def kind_of(tensor: Tensor, batch_shape: tuple[int, int]) -> str | None:
    """How `[..., D]` shows the samples of a batch `(B, T)` of several.

    Returns:
        "samples" for `[B, k, ..., D]`; "tokens" for samples flattened to `[B*T, ..., D]` (OPT's fc1 and fc2, routers,
        shared experts); "row" for `[1, B*T, ..., D]`; None for any other shape. B rows of one vector each are None: as
        many tokens may have been chosen, or vectors be shared by all samples.
    """
    B, T = batch_shape
    leading = tuple(tensor.shape[:-1])
    if leading[:1] == (B * T,):
        return "tokens"
    if leading[:2] == (1, B * T):
        return "row"
    return "samples" if len(leading) > 1 and leading[0] == B else None


class Layouts:
    """How every module shows the samples: learnt from the batches of the probe, and held to ever after.

    One batch proves nothing, since the number of chosen tokens, of experts or of shared vectors can be that of the
    samples by chance; the probe's batches differ in both numbers.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}

    def objection(self, module: str, tensors: tuple[Tensor, ...], batch_shape: tuple[int, int]) -> str | None:
        """Why the samples cannot be found in a module's tensors; what is new about them is learnt.

        Args:
            module: its name.
            tensors: its output and its inputs that count.
            batch_shape: `(B, T)` of the running batch.
        """
        B, T = batch_shape
        if B == 1:
            return None
        for number, tensor in enumerate(tensors):
            key = f"{module}/{number}"
            kind = kind_of(tensor, batch_shape)
            if kind is None:
                return f"shape {tuple(tensor.shape)} in a batch of {B} samples x {T} tokens"
            if self._kinds.setdefault(key, kind) != kind:
                return f"shape {tuple(tensor.shape)} in a batch of {B} samples x {T} tokens, unlike before"
        return None
