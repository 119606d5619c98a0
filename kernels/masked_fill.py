"""Mean fill of many tensors: old values into a log, their sums taken off the tensors' sums, the means written.

    gather (log and ordered float64 sums of masked entries) -> fold -> means -> [read again] -> scatter

The weights are written only when every mean is known to be finite.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tables
from .launch import on_device
from .scatter import ENTRIES, memory_places, scatter_
from .tables import COLUMNS, Row, locate, widen
from .variant import Variant
from .weight_sums import fold, sums_without, weight_sums

_WARPS = 4
_SIGNIFICANT_BITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}


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
        int64 `[1]` on the CPU: -1, or the position of the first weight without a finite mean: then no weight
        was written.
    """
    if sums is None:
        sums = weight_sums(weights)
    masked = _gather(weights, indices, undo)
    means, failed = _means(weights, indices, sums[:, 0] - masked[:, 0], sums[:, 1])
    if failed < 0:
        by_dtype = {dtype: _narrow(means, dtype) for dtype, _ in tables.by_kind(weights)}
        scatter_(weights, indices, [by_dtype[w.dtype][i : i + 1] for i, w in enumerate(weights)])
    return torch.tensor([failed])


def _gather(weights: Sequence[Tensor], indices: Sequence[Tensor], undo: Sequence[Tensor]) -> Tensor:
    """Old values into `undo`; their sums and absolute sums, `[n, 2]`."""
    places = [memory_places(weight, index) for weight, index in zip(weights, indices, strict=True)]
    logs = [old if old.is_contiguous() else torch.empty_like(old).contiguous() for old in undo]
    out = torch.zeros((len(weights), 2), dtype=torch.float64, device=weights[0].device)
    with on_device(out):
        for dtype, positions in tables.by_kind(weights):
            rows = [
                Row(places[i].numel(), i, weights[i].data_ptr(), places[i].data_ptr(), logs[i].data_ptr())
                for i in positions
            ]
            table = tables.build(rows, ENTRIES, out.device)
            if not table.programs:
                continue
            partial = torch.empty((table.programs, 2), dtype=torch.float64, device=out.device)
            gather_kernel[(table.programs,)](
                table.data,
                partial,
                table.rows,
                BITS=tables.bits_of(dtype),
                TYPE=tables.type_of(dtype),
                ENTRIES=ENTRIES,
                num_warps=_WARPS,
            )
            fold(table, partial, out)
    for old, log in zip(undo, logs, strict=True):
        if old is not log:
            old.copy_(log)
    return out


def _means(
    weights: Sequence[Tensor], indices: Sequence[Tensor], totals: Tensor, absolute: Tensor
) -> tuple[Tensor, int]:
    """Means in float64, and the position of the first that is not finite, or -1.

    The differences `totals` are off by at most 2^-46 of the absolute sum: no entry passes through more than
    128 roundings in both sums together, as long as `_within_bound`. Where that exceeds a quarter of a unit in
    the last place of the weight's dtype, the unmasked entries alone are added up again. One synchronisation,
    or two if that happens.
    """
    pairs = list(zip(weights, indices, strict=True))
    spare = [w.numel() - i.numel() if i.numel() else 0 for w, i in pairs]
    grain = [2.0 ** -(_SIGNIFICANT_BITS[w.dtype] + 2) if _within_bound(w, i) else 0.0 for w, i in pairs]
    left, tolerance = torch.tensor([spare, grain], dtype=torch.float64).to(totals.device)
    doubtful = (left > 0) & ~(absolute * 2.0**-46 <= totals.abs() * tolerance)
    means = torch.where(left > 0, totals / left, 0.0)
    suspects, failures = torch.stack([doubtful, ~means.isfinite()]).tolist()
    again = [i for i, suspect in enumerate(suspects) if suspect]
    if again:
        ordered = [indices[i].sort().values for i in again]
        exact = sums_without([weights[i] for i in again], ordered)[:, 0]
        means[torch.tensor(again, device=means.device)] = exact / left[again]
        failures = (~means.isfinite()).tolist()
    return means, failures.index(True) if True in failures else -1


def _within_bound(weight: Tensor, index: Tensor) -> bool:
    """Whether lanes are short enough for the bound on rounding: 71 roundings in the one sum, 53 in the other."""
    return weight.numel() <= 1 << 32 and index.numel() <= 1 << 26


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
