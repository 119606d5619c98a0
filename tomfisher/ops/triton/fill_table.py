"""The device tables behind `FillTable` for the Triton kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from tomfisher.kernels.masked_fill import Entries

_NONE = -1
_ELSEWHERE = -2


class DeviceTable:
    """`Entries` of the kernels, with a look at where the weights are before every call.

    Args:
        weights: at least one, any strides; the table keeps them.
        indices: int64 vectors, checked.
    """

    def __init__(self, weights: Sequence[Tensor], indices: Sequence[Tensor]) -> None:
        self._weights = list(weights)
        self._where = [_whereabouts(weight) for weight in weights]
        with torch.inference_mode(False):  # what is made inside could not be written to outside
            self._entries = Entries(weights, indices)

    def fill_mean(self, sums: Tensor) -> int:
        """Write the means and log the old values.

        Args:
            sums: float64 `[n, 2]` on the weights' device.

        Returns:
            -1; the position of the first weight without a finite mean; or -2 minus the position of the first
            that is no longer where it was. In the last two cases nothing was written.
        """
        return self._run(lambda: self._entries.fill_mean(sums))

    def scatter(self, values: Sequence[Tensor]) -> int:
        """Log the old values and write others; returns -1 or what `fill_mean` does for a weight elsewhere."""
        return self._run(lambda: self._entries.scatter(values))

    def undo(self) -> int:
        """Write the logged values back; returns -1 or what `fill_mean` does for a weight elsewhere."""
        return self._run(self._entries.undo)

    def old(self) -> list[Tensor]:
        """The logged values, one vector `[k]` per weight."""
        return self._entries.old

    def _run(self, write: Callable[[], int | None]) -> int:
        for i, (weight, before) in enumerate(zip(self._weights, self._where, strict=True)):
            if _whereabouts(weight) != before:
                return _ELSEWHERE - i
        failed = write()
        if failed is not None and failed != _NONE:
            return failed
        increment_version(self._weights)  # autograd did not see the write
        return _NONE


def _whereabouts(weight: Tensor) -> tuple[int, torch.dtype, torch.Size, tuple[int, ...], torch.device]:
    return weight.data_ptr(), weight.dtype, weight.shape, weight.stride(), weight.device
