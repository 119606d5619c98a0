"""One tensor of a mapping as something to select from and to count, in memory or left in its file; `summary` of all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

from tomfisher import ops
from tomfisher.ops import Span, Summary
from tomfisher.ops.checks import DTYPES
from tomfisher.progress import progress_bar
from tomfisher.runtime.parts import whole
from tomfisher.runtime.torch_state import plain_torch


class Entries(NamedTuple):
    """The entries of one tensor.

    Attributes:
        name: the tensor's.
        values: the tensor, or where it lies in a file.
    """

    name: str
    values: Tensor | Span

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.values.shape)

    @property
    def numel(self) -> int:
        """How many entries there are."""
        return math.prod(self.shape)

    def largest(
        self, k: int, thresholds: Sequence[float] | None = None
    ) -> tuple[Tensor, Tensor, Summary | None]:
        """The k largest entries, and with thresholds a summary of all from the same pass.

        Args:
            k: 0 to `numel`.
            thresholds: numbers to count the entries above; None takes no summary.

        Returns:
            Values `[k]` float64, larger first, -0.0 as 0.0, and positions `[k]` int64, of equal values the lower
            first, both on the CPU; and the summary.

        Raises:
            TypeError: the dtype has no order here.
            ValueError: NaN or infinity, or a damaged file; the message names the tensor.
        """
        counted: Summary | None = None
        with self._named("ranked"):
            if thresholds is None:
                top = ops.topk(self.values, k)
            else:
                top, counted = ops.topk_summary(self.values, k, thresholds)
        return top.values.cpu().double() + 0.0, top.indices.cpu(), counted

    def summary(self, thresholds: Sequence[float] = ()) -> Summary:
        """What the entries are like, and how many are above each threshold.

        Args:
            thresholds: numbers to count the entries above.

        Raises:
            TypeError: the dtype has no order here.
            ValueError: NaN or infinity, or a damaged file; the message names the tensor.
        """
        with self._named("summed up"):
            return ops.summary(self.values, thresholds)

    @contextmanager
    def _named(self, done: str) -> Iterator[None]:
        """Put the tensor's name in front of what an operation refuses."""
        try:
            yield
        except (TypeError, ValueError) as error:
            raise type(error)(f"Tensor {self.name!r} cannot be {done}: {error}") from error


def stored(F: Mapping[str, Tensor]) -> bool:
    """Whether F is a Fisher diagonal that was opened from disk."""
    name = next(iter(F), None)
    return name is not None and hasattr(F, "span") and F.span(name) is not None


def entries_of(F: Mapping[str, Tensor], name: str) -> Entries:
    """The entries of `F[name]`, which stay in their file where F is a Fisher store opened from disk.

    Where ranks hold parts of a tensor, all of them have to ask, and each gets the whole.

    Args:
        F: any mapping from names to tensors.
        name: one of its names.
    """
    span = F.span(name) if hasattr(F, "span") else None
    return Entries(name, whole(F[name]) if span is None or span.dtype not in DTYPES else span)


@plain_torch()
def summary(F: Mapping[str, Tensor], thresholds: Sequence[float] = ()) -> dict[str, Summary]:
    """Extremes, a histogram over powers of two, and the numbers of entries above thresholds, per tensor.

    Exact, in one pass over each tensor; of a Fisher store opened from disk only a block is held at a time.
    Histograms of tensors of one dtype have the same edges, so those of a layer or of the model are sums.

    Args:
        F: any mapping from names to tensors of float16, bfloat16, float32 or float64 values.
        thresholds: numbers to count the entries above.

    Returns:
        A `tomfisher.ops.Summary` for every name, in the order of F.

    Raises:
        TypeError: a tensor has no floating-point dtype.
        ValueError: a tensor holds NaN or infinity, or a threshold is NaN.
    """
    names = progress_bar(list(F), desc="Summing up", unit="tensor", enabled=stored(F))
    return {name: entries_of(F, name).summary(thresholds) for name in names}
