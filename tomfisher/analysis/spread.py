"""How scattered a mask's entries are in a matrix: distinct rows and columns, compared with a random mask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tomfisher.analysis.counts import rows_and_columns
from tomfisher.masks import SparseMask

TOP = 5
BUSY = 0.01


@dataclass(frozen=True)
class Axis:
    """The rows (outputs) or the columns (inputs) of one matrix.

    Attributes:
        size: how many there are.
        distinct: how many have a masked entry.
        expected: mean of `distinct` over all masks of as many entries.
        busiest_share: share of the masked entries that lies in the busiest hundredth of them (at least one);
            NaN for an empty mask.
        effective: exp of the entropy of the masked entries over them: as many equally busy ones are as scattered.
        top: (number, masked entries) of the busiest five, the busiest first.
    """

    size: int
    distinct: int
    expected: float
    busiest_share: float
    effective: float
    top: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, counts: Tensor, across: int) -> Axis:
        """Measure one axis.

        Args:
            counts: int64 `[size]`, masked entries of each row (column).
            across: entries of one row (column).
        """
        masked = int(counts.sum())
        order = counts.argsort(descending=True, stable=True)
        busy = counts[order[: math.ceil(BUSY * len(counts))]].sum()
        share = counts[counts > 0].double() / max(masked, 1)
        return cls(
            size=len(counts),
            distinct=int((counts > 0).sum()),
            expected=expected_distinct(len(counts), across, masked),
            busiest_share=float(busy) / masked if masked else math.nan,
            effective=float((-(share * share.log()).sum()).exp()) if masked else 0.0,
            top=tuple((i, int(counts[i])) for i in order[:TOP].tolist() if counts[i]),
        )


@dataclass(frozen=True)
class Spread:
    """One matrix: how its masked entries are scattered over rows and columns.

    Attributes:
        tensor: the weight's name; "NAME[e]" for the matrix of expert e.
        masked: number of masked entries.
        rows: outputs of the layer, wherever the weight keeps them.
        columns: its inputs.
    """

    tensor: str
    masked: int
    rows: Axis
    columns: Axis

    def to_dict(self) -> dict[str, Any]:
        """Everything, nested; NaN where nothing is masked."""
        return {**vars(self), "rows": vars(self.rows), "columns": vars(self.columns)}


def spread(mask: SparseMask, transposed: frozenset[str] = frozenset()) -> list[Spread]:
    """Measure every matrix of a mask; vectors are left out.

    Args:
        mask: any mask.
        transposed: weights that keep their outputs on the second axis (transformers' `Conv1D`).

    Returns:
        One `Spread` per matrix; a fused experts' weight has one for each expert.
    """
    spreads = []
    for name, rows, columns, shape in matrices(mask, transposed):
        by_row, by_column = (
            torch.bincount(x, minlength=n) for x, n in zip((rows, columns), shape, strict=True)
        )
        axes = Axis.of(by_row, shape[1]), Axis.of(by_column, shape[0])
        spreads.append(Spread(name, rows.numel(), *axes))
    return spreads


def matrices(
    mask: SparseMask, transposed: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Tensor, Tensor, tuple[int, int]]]:
    """Each matrix of a mask: its name, the row and column of every masked entry in order, and its shape.

    A weight `[E, a, b]` is E matrices (fused experts), a depthwise convolution `[C, 1, w]` one, a vector none.
    """
    for name, shape in mask.shapes.items():
        if len(shape) < 2 or 0 in shape:
            continue
        count = shape[0] if len(shape) > 2 and shape[1] > 1 else 1
        inner = shape if count == 1 else shape[1:]
        height, width = inner[0], torch.Size(inner[1:]).numel()
        edges = torch.searchsorted(mask[name], torch.arange(count + 1) * height * width)
        for e in range(count):
            index = mask[name][edges[e] : edges[e + 1]] - e * height * width
            rows, columns = rows_and_columns(index, (height, width))
            label = name if count == 1 else f"{name}[{e}]"
            if name in transposed:
                yield label, columns, rows, (width, height)
            else:
                yield label, rows, columns, (height, width)


def expected_distinct(size: int, across: int, masked: int) -> float:
    """Mean number of rows with a masked entry, over all masks of `masked` entries of a `[size, across]` matrix.

    By linearity, size · (1 - Π_{i < across} (1 - masked / (N - i))) with N = size · across; `across` and `masked` may
    change places in the product.
    """
    total, (few, many) = size * across, sorted((across, masked))
    if masked > total - across:
        return float(size)
    log_none = torch.log1p(-many / (total - torch.arange(few, dtype=torch.float64))).sum()
    return -size * math.expm1(float(log_none))
