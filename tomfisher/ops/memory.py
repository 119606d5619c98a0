"""Which memory a tensor takes: what is written must not be read in the same call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def overlap(written: Sequence[Tensor], read: Sequence[Tensor], apart: bool = False) -> tuple[int, int] | None:
    """Two tensors of which one at least is written and one lies between the first and the last byte of the other.

    Args:
        written: they may overlap one another unless `apart`.
        read: they may overlap one another.
        apart: whether two written ones count too.

    Returns:
        Their places in `[*written, *read]`, or None where there are none.
    """
    count = len(written)
    spans = sorted((*_span(t), i) for i, t in enumerate((*written, *read)) if t.numel())
    ends = [0, 0]  # the last byte so far of what is read and of what is written
    owners = [0, 0]
    for start, stop, i in spans:
        writes = i < count
        if start < ends[not writes]:
            return owners[not writes], i
        if writes and apart and start < ends[1]:
            return owners[1], i
        if stop > ends[writes]:
            ends[writes], owners[writes] = stop, i
    return None


def _span(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte and of the first after the last, gaps included."""
    first = tensor.data_ptr()
    if tensor.is_contiguous():
        return first, first + tensor.nbytes
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * tensor.element_size()
