"""Which memory a tensor takes: what is written must not be read in the same call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

Span = tuple[int, int, str]


def span(tensor: Tensor, name: str) -> Span:
    """Addresses of the first byte of a tensor and of the first after its last, gaps included, and its name."""
    first = tensor.data_ptr()
    if tensor.is_contiguous():
        return first, first + tensor.nbytes, name
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * tensor.element_size(), name


def spans(label: str, tensors: Sequence[Tensor]) -> list[Span]:
    """`span` of every tensor that has an entry."""
    return [span(tensor, f"{label}[{i}]") for i, tensor in enumerate(tensors) if tensor.numel()]


def overlap(written: Iterable[Span], read: Iterable[Span], apart: bool = False) -> tuple[str, str] | None:
    """Names of two spans with bytes in common of which one at least is written; None where there are none.

    Args:
        written: they may overlap one another unless `apart`.
        read: they may overlap one another.
        apart: whether two written ones count too.
    """
    ends = {True: (0, ""), False: (0, "")}  # the last byte so far of what is written and of what is read
    everything = [(each, True) for each in written] + [(each, False) for each in read]
    for (start, stop, name), writes in sorted(everything):
        for other in (True, False):
            end, owner = ends[other]
            if start < end and (other != writes or (writes and apart)):
                return owner, name
        ends[writes] = max(ends[writes], (stop, name))
    return None
