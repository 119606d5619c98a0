"""Parameters that are spread over the ranks: by rows, as FSDP2's `fully_shard` leaves them, or along any dimension."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a `torch.distributed.tensor.DTensor`, spread over the ranks of a mesh."""
    if not (isinstance(tensor, Tensor) and is_traceable_wrapper_subclass(tensor)):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def sharded_names(tensors: Iterable[tuple[str, Any]]) -> list[str]:
    """The names of those that are DTensors."""
    return [name for name, tensor in tensors if is_sharded(tensor)]


def rows_of(length: int, size: int, rank: int) -> range:
    """The rows of one rank where `length` rows are cut as `torch.chunk` cuts them: the last ranks may have none."""
    each = -(-length // size)
    return range(min(length, rank * each), min(length, (rank + 1) * each))


def check_by_rows(tensors: Mapping[str, Any], working: int) -> None:
    """Refuse DTensors that are not cut by rows over all ranks of the process group.

    Args:
        tensors: DTensors by name.
        working: number of ranks that make this call together.

    Raises:
        ValueError: naming the tensor, its placements and its mesh.
    """
    _check(tensors, working, by_rows=True)


def check_spread(tensors: Mapping[str, Any], working: int) -> None:
    """Refuse DTensors that are not spread over all ranks of the process group: by rows, by columns, in pieces or whole.

    Args:
        tensors: DTensors by name.
        working: number of ranks that make this call together.

    Raises:
        ValueError: naming the tensor, its placements and its mesh.
    """
    _check(tensors, working, by_rows=False)


def _check(tensors: Mapping[str, Any], working: int, by_rows: bool) -> None:
    if not dist.is_initialized():
        raise ValueError(
            "Weights that are spread over ranks need the process group that spread them: none is there."
        )
    for name, tensor in tensors.items():
        if fault := _fault(tensor, by_rows):
            raise ValueError(
                f"{name} is spread over the ranks as {list(tensor.placements)} on {tensor.device_mesh}: {fault}. "
                "Supported is FSDP2 over all ranks of the process group: fully_shard(layer) of every decoder layer, on "
                "a mesh of one dimension, with its default placement"
                f"{'' if by_rows else '; and what transformers splits over all of them with tp_size and ep_size'}."
            )
        if working < tensor.device_mesh.size():
            raise ValueError(
                f"{name} is spread over {tensor.device_mesh.size()} ranks, but this one works alone "
                "(tomfisher.runtime.ranks.alone). All of them have to make this call together."
            )


def _fault(tensor: Any, by_rows: bool) -> str | None:
    from torch.distributed.tensor import Shard

    mesh = tensor.device_mesh
    if mesh.ndim != 1:
        return f"a mesh of {mesh.ndim} dimensions (HSDP, or FSDP with tensor parallelism) is not supported"
    if mesh.mesh.tolist() != list(range(dist.get_world_size())):
        return f"the mesh is not that of all {dist.get_world_size()} ranks, in their order"
    (placement,) = tensor.placements
    if not by_rows:
        held = placement.is_replicate() or hasattr(placement, "dim")
        return None if held else f"{placement} is not supported: no rank holds its entries"
    if type(placement) is not Shard or placement.dim != 0:
        return f"{placement} is not supported, only rows are (Shard(dim=0))"
    rows = rows_of(tensor.shape[0], mesh.size(), dist.get_rank())
    if (count := local_rows(tensor).shape[0]) != len(rows):
        return f"this rank holds {count} of {tensor.shape[0]} rows, not {len(rows)}"
    return None


def local_rows(tensor: Any) -> Tensor:
    """The rows that this rank holds of a DTensor, in the same memory."""
    with torch.no_grad():
        local: Tensor = tensor.to_local()
    return local


def settle(model: nn.Module) -> None:
    """Let a model of `fully_shard` hold its shards, where a forward has left weights gathered."""
    if "torch.distributed.fsdp" not in sys.modules:
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
