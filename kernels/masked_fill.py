"""Mean fill of many tensors: old values into a log, their sums taken off the tensors' sums, the means written.

    gather (log and ordered float64 sums of masked entries) -> fold -> means -> [read again] -> scatter

The weights are written only when every mean is known to be finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tables
from .launch import FUSED, on_device, require_device, sent
from .scatter import ENTRIES, Found, Launch, found, memory_places, prepare
from .tables import COLUMNS, Table, locate, widen
from .variant import Variant
from .weight_sums import fold, sums_without, weight_sums

_WARPS = 4


@triton.jit(do_not_specialize=["rows"])
def gather_kernel(table, partial, rows, BITS: tl.constexpr, TYPE: tl.constexpr, ENTRIES: tl.constexpr):
    """log[i] = weight[place[i]] bit by bit; sum and absolute sum -> partial[2 · program_id + (0, 1)]."""
    program = tl.program_id(0).to(tl.int64)
    row = table + locate(table, program, rows) * COLUMNS
    weight = tl.load(row + 1).to(tl.pointer_type(BITS))
    place = tl.load(row + 4).to(tl.pointer_type(tl.int64))
    log = tl.load(row + 5).to(tl.pointer_type(BITS))
    i = (program - tl.load(row)) * ENTRIES + tl.arange(0, ENTRIES)
    inside = i < tl.load(row + 2)
    bits = tl.load(weight + tl.load(place + i, mask=inside, other=0), mask=inside, other=0)
    tl.store(log + i, bits, mask=inside)
    value = widen(bits, TYPE, tl.float64)
    tl.store(partial + 2 * program, tl.sum(value, 0))
    tl.store(partial + 2 * program + 1, tl.sum(tl.abs(value), 0))


def masked_fill_mean_(
    weights: Sequence[Tensor], indices: Sequence[Tensor], undo: Sequence[Tensor], sums: Tensor | None
) -> Tensor:
    """Fill the indices of each tensor with the mean of its other entries; the old values go to `undo`.

    Args:
        weights: float16, bfloat16, float32 or float64 on one device, any strides.
        indices: int64 `[k]`, in range, no repetitions, fewer than the weight's entries.
        undo: `[k]` of the weights' dtypes.
        sums: `weight_sums(weights)`; None takes them here.

    Returns:
        float64 `[n]` on the CPU: the means before they are rounded, 0 where nothing is masked. If one is not
        finite, nothing was written.
    """
    totals = (
        weight_sums(weights) if sums is None else sums
    )  # first: the GPU reads while the host makes tables
    entries = Entries(weights, indices)
    means = entries.fill_mean(totals)
    if not all(map(math.isfinite, means.tolist())):  # no tensor is allocated once the first entry is written
        return means
    try:
        torch._foreach_copy_(list(undo), entries.old())
    except BaseException:
        entries.undo()
        raise
    return means


class Entries:
    """Entries of many tensors, with all that filling and undoing them needs on the device already.

    Args:
        weights: at least one, as for `masked_fill_mean_`; their memory must stay where it is.
        indices: as for `masked_fill_mean_`; not to be changed.
    """

    def __init__(self, weights: Sequence[Tensor], indices: Sequence[Tensor]) -> None:
        require_device(weights[0])
        self._weights, self._indices = list(weights), list(indices)
        self._device = weights[0].device
        self._places = [memory_places(w, index) for w, index in zip(weights, indices, strict=True)]
        entries = found(weights, self._places)
        logs, means = np.zeros(len(weights), np.int64), np.zeros(len(weights), np.int64)
        self._logs: list[
            tuple[np.ndarray, list[int], Tensor]
        ] = []  # positions, counts and old values of each dtype
        self._means: dict[torch.dtype, Tensor] = {}
        for dtype, at in entries.kinds:
            counts = entries.counts[at]
            log = torch.empty(int(counts.sum()), dtype=dtype, device=self._device)
            mean = torch.zeros(len(weights), dtype=dtype, device=self._device)
            logs[at] = log.data_ptr() + dtype.itemsize * (counts.cumsum() - counts)
            means[at] = mean.data_ptr() + dtype.itemsize * at
            self._logs.append((at, counts.tolist(), log))
            self._means[dtype] = mean
        self._back = prepare(entries, logs, self._device)
        self._fill = prepare(entries, means, self._device, each=False)
        # what is read into the log is what is written back from it: one table serves both
        self._gather = [_Gather(launch.dtype, launch.table) for launch in self._back]
        self._masked = torch.zeros((len(weights), 2), dtype=torch.float64, device=self._device)
        numbers = _left_and_tolerance(entries, tables.sizes(weights))
        self._left, self._tolerance = sent(numbers, self._device)
        self._masks = self._left > 0

    def old(self) -> list[Tensor]:
        """The values before the fill, `[k]` per weight."""
        split = [zip(at.tolist(), log.split(counts), strict=True) for at, counts, log in self._logs]
        parts = dict(chain.from_iterable(split))
        return [parts[i] for i in range(len(parts))]

    def fill_mean(self, sums: Tensor) -> Tensor:
        """Log the old values and write the means of the unmasked ones; after an error nothing is written.

        Args:
            sums: `weight_sums(weights)`.

        Returns:
            As for `masked_fill_mean_`.
        """
        self._read()
        means, on_host = self._mean(sums[:, 0] - self._masked[:, 0], sums[:, 1])
        if on_host.isfinite().all():
            for dtype, values in self._means.items():
                values.copy_(_narrow(means, dtype))
            self._write(self._fill)
        return on_host

    def undo(self) -> None:
        """Write the logged values back."""
        for launch in self._back:
            launch.run()

    def _read(self) -> None:
        for launch in self._gather:
            launch.run(self._masked)

    def _write(self, launches: Sequence[Launch]) -> None:
        """Start the launches, or after an error put back what was logged."""
        try:
            for launch in launches:
                launch.run()
        except BaseException:
            self.undo()
            raise

    def _mean(self, totals: Tensor, absolute: Tensor) -> tuple[Tensor, Tensor]:
        """Means in float64, on the device and on the CPU.

        The differences `totals` are off by at most 2^-46 of the absolute sum: no entry passes through more than
        128 roundings in both sums together, as long as lanes are short (`_left_and_tolerance`). Where that exceeds
        a quarter of a unit in the last place of the weight's dtype, an eighth of its epsilon, or where sums of
        finite entries overflow, the unmasked entries alone are added up again. One synchronisation, or two if that
        happens.
        """
        good = (absolute * 2.0**-46 <= totals.abs() * self._tolerance) & totals.isfinite()
        means = torch.where(self._masks, totals / self._left, 0.0)
        suspects, on_host = torch.stack([self._masks & ~good, means]).cpu().unbind()
        again = [i for i, suspect in enumerate(suspects.tolist()) if suspect]
        if again:
            ordered = [self._indices[i].sort().values for i in again]
            exact = sums_without([self._weights[i] for i in again], ordered)[:, 0]
            means[torch.tensor(again, device=means.device)] = exact / self._left[again]
            on_host = means.cpu()
        return means, on_host


class _Gather:
    """Reading the entries of the tensors of one dtype into their logs, and the sums of them."""

    def __init__(self, dtype: torch.dtype, table: Table) -> None:
        self._dtype, self._table = dtype, table
        self._partial = torch.empty((table.programs, 2), dtype=torch.float64, device=table.data.device)

    def run(self, sums: Tensor) -> None:
        """Log; sum and absolute sum of each tensor's entries go to its row of `sums`, `[n, 2]`."""
        if not self._table.programs:
            return
        with on_device(sums):
            gather_kernel[(self._table.programs,)](
                self._table.data,
                self._partial,
                self._table.rows,
                BITS=tables.bits_of(self._dtype),
                TYPE=tables.type_of(self._dtype),
                ENTRIES=ENTRIES,
                num_warps=_WARPS,
                **FUSED,
            )
            fold(self._table, self._partial, sums)


def _left_and_tolerance(entries: Found, sizes: np.ndarray) -> np.ndarray:
    """Of each tensor the number of unmasked entries, 0 where nothing is masked, and an eighth of its dtype's epsilon.

    Where lanes are too long for the bound on rounding, 71 roundings in the one sum and 53 in the other, the
    tolerance is 0.
    """
    numbers = np.zeros((2, len(sizes)))
    numbers[0] = np.where(entries.counts > 0, sizes - entries.counts, 0)
    for dtype, at in entries.kinds:
        short = (sizes[at] <= 1 << 32) & (entries.counts[at] <= 1 << 26)
        numbers[1, at] = np.where(short, torch.finfo(dtype).eps / 8, 0.0)
    return numbers


def _narrow(means: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to `dtype` once.

    Sixteen bits are reached by way of float32; rounding to odd on the way (truncate, then set the last bit if
    anything was cut off) keeps the second rounding right.
    """
    if dtype.itemsize != 2:
        return means.to(dtype)
    nearest = means.float()
    bits = nearest.view(torch.int32) - (nearest.double().abs() > means.abs()).int()
    odd = (bits | 1).view(torch.float32)
    return torch.where(nearest.double() == means, nearest, odd).to(dtype)


def variants() -> list[Variant]:
    """Everything that is compiled."""
    return [
        Variant(
            kernel=gather_kernel,
            dtype=name,
            signature={
                "table": "*i64",
                "partial": "*fp64",
                "rows": "i32",
                "BITS": "constexpr",
                "TYPE": "constexpr",
                "ENTRIES": "constexpr",
            },
            constexprs={
                "BITS": tables.bits_of(dtype),
                "TYPE": tables.type_of(dtype),
                "ENTRIES": ENTRIES,
            },
            num_warps=_WARPS,
            divisible_by_16=("table", "partial"),
        )
        for dtype, name in tables.NAMES.items()
    ]
