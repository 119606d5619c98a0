"""Entries of tensors of one dtype on one device, those of each behind those of the one before, as one vector.

What `scatter_` and `masked_fill_mean_` do, without their checks and with few objects to hand over: a perturbation of
hundreds of tensors checks once what it writes again and again. An implementation has three functions:

    gather_entries(weights, index, counts) -> values
    put_entries(weights, index, counts, values)
    fill_entries(weights, index, counts, undo, sums) -> means, as those of `masked_fill_mean_`

`weights` are n tensors, of any strides; `index` is int64 `[K]`, flat row-major positions in the first, the second, ...
of them, none twice; `counts` says how many belong to each; `values` and `undo` are `[K]`, of the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tomfisher.ops.dispatch import implementations, register, resolve


class EntryFunctions(NamedTuple):
    """The three functions of an implementation."""

    gather: Callable[[Sequence[Tensor], Tensor, Sequence[int]], Tensor]
    put: Callable[[Sequence[Tensor], Tensor, Sequence[int], Tensor], None]
    fill: Callable[[Sequence[Tensor], Tensor, Sequence[int], Tensor, Tensor], Tensor]


def entry_functions(impl: str, device: torch.device) -> EntryFunctions:
    """Those of the implementation that `resolve` chooses."""
    names = ("gather_entries", "put_entries", "fill_entries")
    return EntryFunctions(*(resolve(name, impl, device)[1] for name in names))


def by_lists(impl: str) -> None:
    """Enter the three functions for an implementation that has those of lists of vectors."""
    lists = implementations(impl)
    scatter, fill = lists["scatter_"], lists["masked_fill_mean_"]

    @register("gather_entries", impl)
    def gather_entries(weights: Sequence[Tensor], index: Tensor, counts: Sequence[int]) -> Tensor:
        return torch.cat(list(map(torch.take, weights, index.split(counts))))

    @register("put_entries", impl)
    def put_entries(weights: Sequence[Tensor], index: Tensor, counts: Sequence[int], values: Tensor) -> None:
        scatter(weights, index.split(counts), values.split(counts))

    @register("fill_entries", impl)
    def fill_entries(
        weights: Sequence[Tensor], index: Tensor, counts: Sequence[int], undo: Tensor, sums: Tensor
    ) -> Tensor:
        return fill(weights, index.split(counts), undo.split(counts), sums)


by_lists("reference")
