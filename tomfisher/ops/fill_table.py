"""`FillTable`: the same entries filled and undone over and over, checked and packed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tomfisher.ops.dispatch import Impl, resolve
from tomfisher.ops.masked_fill import NonFiniteMeanError, check_sums, masked_fill_mean_, refuse_full
from tomfisher.ops.reference.scatter import gather
from tomfisher.ops.scatter import check_apart, check_entries, check_values, scatter_
from tomfisher.ops.weight_sums import weight_sums

if TYPE_CHECKING:
    from tomfisher.ops.cpp.fill_table import PackedTable
    from tomfisher.ops.triton.fill_table import DeviceTable


class MovedWeightError(RuntimeError):
    """`weights[position]` is no longer the memory that the table was made for; nothing was written."""

    def __init__(self, position: int) -> None:
        super().__init__(
            f"weights[{position}] was moved, converted or resized since its FillTable was made. Nothing was "
            "written. Make a new table."
        )
        self.position = position


class FillTable:
    """Entries of many tensors that are filled and undone repeatedly.

    Equivalent, with everything checked once instead of at every call::

        old = masked_fill_mean_(weights, indices, sums=sums)  # fill_mean(sums)
        scatter_(weights, indices, old)  # undo()

    With the kernels, and with the C++ extension for contiguous weights, everything a call needs is packed when the
    table is made, and it passes over the masked entries alone. Otherwise the two operations run as they are.

    Args:
        weights: as for `masked_fill_mean_`; the table keeps them, and refuses to write once `packed` ones have
            other memory (as after `model.to(...)`).
        indices: as for `masked_fill_mean_`; they are copied.
        impl: "auto", "triton", "cpp" or "reference".

    Attributes:
        impl: the implementation that runs.
        fillable: whether every tensor has an unmasked entry, and so a mean.
        written: whether a fill or scatter is to be undone.

    Raises:
        NotImplementedError: `impl` does not exist here.
        TypeError: a dtype does not fit.
        ValueError: as for `scatter_`.
    """

    def __init__(self, weights: Sequence[Tensor], indices: Sequence[Tensor], impl: Impl = "auto") -> None:
        check_entries(weights, indices)
        self._weights = list(weights)
        self._indices = [index.clone() for index in indices]
        self.written = False
        self._old: list[Tensor] = []
        device = weights[0].device if weights else torch.device("cpu")
        self.impl = resolve("masked_fill_mean_", impl, device)[0]
        self._request = impl
        self._table = self._pack()
        self.fillable = all(
            index.numel() < weight.numel() or not index.numel()
            for weight, index in zip(weights, indices, strict=True)
        )

    def _pack(self) -> PackedTable | DeviceTable | None:
        if self.impl == "cpp" and all(weight.is_contiguous() for weight in self._weights):
            from tomfisher.ops.cpp.fill_table import PackedTable

            return PackedTable(self._weights, self._indices)
        if self.impl == "triton" and self._weights:
            from tomfisher.ops.triton.fill_table import DeviceTable

            return DeviceTable(self._weights, self._indices)
        return None

    @property
    def packed(self) -> bool:
        """Whether calls go through one packed table, which knows where the weights' memory was."""
        return self._table is not None

    @property
    def old(self) -> list[Tensor]:
        """The values before the last fill or scatter, one vector `[k]` per weight; the next one overwrites them."""
        return self._old if self._table is None else self._table.old()

    @torch.no_grad()
    def fill_mean(self, sums: Tensor | None = None) -> None:
        """Write to the masked entries of each tensor the mean of its unmasked entries.

        Args:
            sums: `weight_sums(weights)` as the weights are now; None reads them.

        Raises:
            MovedWeightError: a weight has other memory than the table was made for.
            RuntimeError: what was written before is not undone.
            TypeError: sums are not float64.
            ValueError: as for `masked_fill_mean_`; a mean that is not finite is a `NonFiniteMeanError`.
        """
        self._refuse_twice()
        if not self.fillable:
            refuse_full(self._weights, self._indices)
        check_sums(self._weights, sums)
        if self._table is None:
            self._old = masked_fill_mean_(self._weights, self._indices, sums=sums, impl=self._request)
        else:
            known = weight_sums(self._weights, impl=self._request) if sums is None else sums
            self._refuse_failed(self._table.fill_mean(known))
        self.written = True

    @torch.no_grad()
    def scatter(self, values: Sequence[Tensor]) -> None:
        """Write `values[i]` to the masked entries of `weights[i]`, bit patterns unchanged.

        Args:
            values: vectors of the indices' lengths and the weights' dtypes, on their device.

        Raises:
            MovedWeightError: a weight has other memory than the table was made for.
            RuntimeError: what was written before is not undone.
            TypeError: a dtype does not fit.
            ValueError: lengths or devices differ.
        """
        self._refuse_twice()
        check_values("values", self._weights, self._indices, values)
        if self._table is None:
            self._scatter(values)
        else:
            check_apart("values", self._weights, values)
            self._refuse_failed(self._table.scatter(values))
        self.written = True

    @torch.no_grad()
    def undo(self) -> None:
        """Write the old values back, bit for bit.

        Raises:
            MovedWeightError: a weight has other memory than the table was made for.
            RuntimeError: nothing is written.
        """
        if not self.written:
            raise RuntimeError("Nothing to undo: call fill_mean() or scatter() first.")
        if self._table is None:
            scatter_(self._weights, self._indices, self._old, impl=self._request)
        else:
            self._refuse_failed(self._table.undo())
        self.written = False

    def _scatter(self, values: Sequence[Tensor]) -> None:
        self._old = [gather(w, index) for w, index in zip(self._weights, self._indices, strict=True)]
        try:
            scatter_(self._weights, self._indices, values, impl=self._request)
        except BaseException:
            scatter_(self._weights, self._indices, self._old, impl=self._request)
            raise

    def _refuse_twice(self) -> None:
        if self.written:
            raise RuntimeError("What this table wrote before would be lost to undo(). Call undo() first.")

    def _refuse_failed(self, result: int) -> None:
        if result >= 0:
            raise NonFiniteMeanError(result)
        if result <= -2:
            raise MovedWeightError(-2 - result)
