"""Which entries of a whole tensor this rank holds: the local part of a DTensor, whatever its placements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tomfisher.runtime.sharded import is_sharded


@dataclass(frozen=True)
class Part:
    """The entries of a whole tensor that one rank holds, as a product of positions along each dimension.

    Attributes:
        shape: of the whole tensor.
        index: of every dimension, the positions that are here, int64 on the CPU; None for all of them.
    """

    shape: tuple[int, ...]
    index: tuple[Tensor | None, ...]

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of what is here."""
        return tuple(
            size if own is None else len(own) for size, own in zip(self.shape, self.index, strict=True)
        )

    @property
    def is_cut(self) -> bool:
        """Whether other ranks hold other entries."""
        return any(own is not None for own in self.index)

    def taken(self, tensor: Tensor, dim: int, of: int) -> Tensor:
        """What a tensor has along `dim` at the positions of dimension `of` that are here.

        Args:
            tensor: as long along `dim` as the whole tensor along `of`.
            dim: of the tensor.
            of: dimension of the whole tensor.
        """
        own = self.index[of]
        return tensor if own is None else tensor.index_select(dim, own.to(tensor.device))

    def find(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Which of some entries are here, and where.

        Args:
            flat: `[K]`, int64, indices into the flattened whole tensor.

        Returns:
            Those of the K that are here, rising; and the index of each into the flattened local part.
        """
        here = torch.ones(len(flat), dtype=torch.bool)
        local = torch.zeros(len(flat), dtype=torch.int64)
        stride = math.prod(self.shape)
        rest = flat.cpu()
        for size, own in zip(self.shape, self.index, strict=True):
            stride //= max(1, size)
            position, rest = rest // max(1, stride), rest % max(1, stride)
            if own is not None:
                place = torch.full((size,), -1, dtype=torch.int64)
                place[own] = torch.arange(len(own))
                position = place[position]
                here &= position >= 0
            local = local * (size if own is None else len(own)) + position
        return here.nonzero().squeeze(1).to(flat.device), local[here].to(flat.device)


def part_of(tensor: Any) -> Part:
    """The part of a tensor that this rank holds; all of one that is no DTensor. Nothing is exchanged.

    Args:
        tensor: a parameter or buffer.
    """
    shape = tuple(tensor.shape)
    if not is_sharded(tensor):
        return Part(shape, (None,) * len(shape))
    return Part(shape, tuple(_positions(tensor, dim) for dim in range(len(shape))))


def local_of(tensor: Any) -> Tensor:
    """What this rank holds of a tensor, in the same memory, without a gradient's history."""
    held = tensor.detach()
    local: Tensor = held.to_local() if is_sharded(held) else held
    return local


def whole(tensor: Any) -> Tensor:
    """A DTensor as a plain tensor, the same on every rank of its mesh, all of which have to ask; others as they are."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return full


def placed_like(tensor: Any, local: Tensor) -> Tensor:
    """A DTensor of one's own numbers, split over the ranks as another is; where that is no DTensor, the numbers.

    Args:
        tensor: whose placements are taken.
        local: what this rank holds.
    """
    if not is_sharded(tensor):
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=torch.empty(tensor.shape, device="meta").stride(),
    )


def first_values(tensor: Any, count: int) -> Tensor:
    """The first entries of a flattened DTensor, put together from the ranks that hold them.

    Args:
        tensor: a DTensor; every rank of its mesh has to make this call.
        count: how many, or all if there are fewer.
    """
    local = local_of(tensor).reshape(-1)
    given = torch.zeros(min(count, tensor.numel()), dtype=torch.float64, device=local.device)
    which, where = part_of(tensor).find(torch.arange(len(given)))
    # as numbers that hold every sign and bit of the narrower dtypes
    given[which.to(local.device)] = local[where.to(local.device)].double()
    bits = given.view(torch.int64)
    for dim in range(tensor.device_mesh.ndim):
        if not tensor.placements[dim].is_replicate():
            dist.all_reduce(bits, group=tensor.device_mesh.get_group(dim))
    return given.to(tensor.dtype)


def _positions(tensor: Any, dim: int) -> Tensor | None:
    """Positions along a dimension that are here: those of numbered positions placed as the tensor is."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    cut = [hasattr(p, "dim") and p.dim % tensor.ndim == dim for p in tensor.placements]
    if not any(cut):
        return None
    placements = [
        _along_first(p) if here else Replicate() for p, here in zip(tensor.placements, cut, strict=True)
    ]
    numbers = torch.arange(tensor.shape[dim], device=tensor.device)
    placed = distribute_tensor(numbers, tensor.device_mesh, placements, src_data_rank=None)
    return placed.to_local().cpu()


def _along_first(placement: Any) -> Any:
    """The same placement of a vector."""
    from torch.distributed.tensor import Shard

    if type(placement) is Shard:
        return Shard(0)
    return type(placement)(0, split_factor=placement.split_factor)
