"""The packed tables behind `FillTable` for contiguous weights on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)

_CODES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}  # csrc/dtype.h
# what the packed operations return (csrc/packed_fill_ops.cpp)
_NONE = -1
_ELSEWHERE = -2


class PackedTable:
    """Weights, positions and old values as the extension reads them: one call with four small tensors.

    Args:
        weights: contiguous, on the CPU; the table keeps them.
        indices: int64 vectors, checked.
    """

    def __init__(self, weights: Sequence[Tensor], indices: Sequence[Tensor]) -> None:
        self.weights = list(weights)
        counts = [index.numel() for index in indices]
        ends = list(itertools.accumulate(counts, initial=0))
        slots = [-(-n * w.element_size() // 8) for n, w in zip(counts, weights, strict=True)]
        starts = list(itertools.accumulate(slots, initial=0))
        rows = [
            (w.data_ptr(), w.numel(), _CODES[w.dtype], ends[i], ends[i + 1], 8 * starts[i])
            for i, w in enumerate(weights)
        ]
        self._table = torch.tensor(rows, dtype=torch.int64).view(-1, 6)
        self._positions = torch.cat([torch.empty(0, dtype=torch.int64), *indices])
        self._log = torch.zeros(starts[-1], dtype=torch.int64)
        self._spans = [
            (8 * start, 8 * start + n * w.element_size(), w.dtype)
            for start, n, w in zip(starts[:-1], counts, weights, strict=True)
        ]

    def fill_mean(self, sums: Tensor) -> int:
        """Write the means and log the old values.

        Args:
            sums: float64 `[n, 2]` on the CPU.

        Returns:
            -1; the position of the first weight without a finite mean; or -2 minus the position of the first
            that is no longer where it was. In the last two cases nothing was written.
        """
        return self._noted(
            torch.ops.tomfisher_cpp.packed_fill_mean_.default(
                self.weights,
                self._table,
                self._positions,
                self._log,
                sums.contiguous(),
                torch.get_num_threads(),
            )
        )

    def scatter(self, values: Sequence[Tensor]) -> int:
        """Log the old values and write others; returns -1 or what `fill_mean` does for a weight elsewhere."""
        packed = torch.zeros_like(self._log)
        for i, ((_, _, dtype), span, value) in enumerate(
            zip(self._spans, self._split(packed), values, strict=True)
        ):
            if value.dtype != dtype:  # and so the weight was converted
                return _ELSEWHERE - i
            span.copy_(value.contiguous().view(torch.uint8))
        return self._scatter(packed, self._log)

    def undo(self) -> int:
        """Write the logged values back; returns -1 or what `fill_mean` does for a weight elsewhere."""
        return self._scatter(self._log, None)

    def old(self) -> list[Tensor]:
        """The logged values, one view `[k]` per weight."""
        return [
            bits.view(dtype) for bits, (_, _, dtype) in zip(self._split(self._log), self._spans, strict=True)
        ]

    def _scatter(self, values: Tensor, old: Tensor | None) -> int:
        return self._noted(
            torch.ops.tomfisher_cpp.packed_scatter_.default(
                self.weights, self._table, self._positions, values, old, torch.get_num_threads()
            )
        )

    def _split(self, log: Tensor) -> list[Tensor]:
        """Views of a log as bytes, one per weight."""
        flat = log.view(torch.uint8)
        return [flat[begin:end] for begin, end, _ in self._spans]

    def _noted(self, result: int) -> int:
        """Tell autograd of a write that it did not see."""
        if result == _NONE:
            increment_version(self.weights)
        return result
