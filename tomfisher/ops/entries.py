"""Entries of tensors of one dtype on one device, those of each behind those of the one before, as one vector.

What `scatter_` and `masked_fill_mean_` do, without their checks and with few objects to hand over: a perturbation of
hundreds of tensors checks once what it writes again and again. An implementation of these two has three functions:

    gather_entries(weights, index, counts) -> values
    put_entries(weights, index, counts, values)
    fill_entries(weights, index, counts, undo, sums) -> means, as those of `masked_fill_mean_`

`weights` are n tensors, of any strides; `index` is int64 `[K]`, flat row-major positions in the first, the second, ...
of them, none twice; `counts` says how many belong to each; `values` and `undo` are `[K]`, of the weights' dtype. Those
that an implementation does not register are made of its functions on lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tomfisher.ops.dispatch import implementations, resolve

Gather = Callable[[Sequence[Tensor], Tensor, Sequence[int]], Tensor]
Put = Callable[[Sequence[Tensor], Tensor, Sequence[int], Tensor], None]
Fill = Callable[[Sequence[Tensor], Tensor, Sequence[int], Tensor, Tensor], Tensor]


class EntryFunctions(NamedTuple):
    """The three functions, and which implementation of `scatter_` and of `masked_fill_mean_` they belong to."""

    gather: Gather
    put: Put
    fill: Fill
    implementations: dict[str, str]


def entry_functions(impl: str, device: torch.device) -> EntryFunctions:
    """Those of the implementations of `scatter_` and `masked_fill_mean_` that `resolve` chooses."""
    putting, scatter = resolve("scatter_", impl, device)
    filling, fill = resolve("masked_fill_mean_", impl, device)
    own = implementations(putting)
    return EntryFunctions(
        own.get("gather_entries", gather_one_by_one),
        own.get("put_entries") or _put_by_lists(scatter),
        implementations(filling).get("fill_entries") or _fill_by_lists(fill),
        {"masked_fill_mean_": filling, "scatter_": putting},
    )


def gather_one_by_one(weights: Sequence[Tensor], index: Tensor, counts: Sequence[int]) -> Tensor:
    """`gather_entries` of tensors of any strides on any device."""
    return torch.cat(list(map(torch.take, weights, index.split(counts))))


def _put_by_lists(scatter: Callable[..., None]) -> Put:
    def put_entries(weights: Sequence[Tensor], index: Tensor, counts: Sequence[int], values: Tensor) -> None:
        scatter(weights, index.split(counts), values.split(counts))

    return put_entries


def _fill_by_lists(fill: Callable[..., Tensor]) -> Fill:
    def fill_entries(
        weights: Sequence[Tensor], index: Tensor, counts: Sequence[int], undo: Tensor, sums: Tensor
    ) -> Tensor:
        return fill(weights, index.split(counts), undo.split(counts), sums)

    return fill_entries
