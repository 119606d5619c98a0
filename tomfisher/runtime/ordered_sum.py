"""Sums of tensors over ranks, added in rank order: the same bits each time, for a fixed number of ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tomfisher.runtime.board import check
from tomfisher.runtime.sharded import rows_of

PIECE = 1 << 24  # entries that are exchanged at once
POLL = 0.0005  # seconds between looks at an exchange


def place_of(device: torch.device) -> torch.device:
    """Where tensors of a device are exchanged: there by NCCL, on the CPU by gloo.

    Raises:
        ValueError: the process group has neither for it.
    """
    config = dict(part.split(":", 1) for part in dist.get_backend_config().split(",") if ":" in part)
    if config.get(device.type) == "nccl":
        return device
    if config.get("cpu") == "gloo":
        return torch.device("cpu")
    raise ValueError(
        f"Tensors on {device} cannot be added over the ranks of a process group with backend {dist.get_backend()!r} "
        f"({dist.get_backend_config()}). Use torch.distributed.init_process_group('gloo'), or 'cpu:gloo,cuda:nccl' "
        "for GPUs."
    )


def ordered_sum_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks, `t = ((t_0 + t_1) + t_2) + ...`, in place on every rank.

    Each rank adds one share of the entries, in rank order, and the shares are gathered: what an all-reduce sends,
    in an order that does not depend on sizes, algorithms or arrival.

    Args:
        tensors: contiguous, float32, the same shapes in the same order on all ranks.

    Raises:
        ValueError: see `place_of`.
        RuntimeError: the exchange broke off.
    """
    for pieces in _buckets(tensors):
        place = place_of(pieces[0].device)
        flat = torch.cat(pieces).to(place)
        summed = _summed(flat).to(pieces[0].device)
        for piece, total in zip(pieces, summed.split([len(piece) for piece in pieces]), strict=True):
            piece.copy_(total)


def _summed(flat: Tensor) -> Tensor:
    size = dist.get_world_size()
    share = -(-flat.numel() // size)
    sent = torch.nn.functional.pad(flat, (0, size * share - flat.numel()))
    received = torch.empty_like(sent)
    _finish(dist.all_to_all_single(received, sent, async_op=True))
    total, *others = received.view(size, share)
    for part in others:
        total += part
    _finish(dist.all_gather(list(sent.view(size, share)), total.clone(), async_op=True))
    return sent[: flat.numel()]


def ordered_rows(tensor: Tensor) -> Tensor:
    """The rows that are this rank's (`rows_of`) of the sum of a tensor over all ranks, with the bits of `ordered_sum_`.

    What a reduce-scatter sends; beside the tensor it takes memory for two pieces of `PIECE` entries.

    Args:
        tensor: `[R, ...]`, float32, contiguous, the same shape on all ranks.

    Returns:
        `[r, ...]`, of its own memory.

    Raises:
        ValueError: see `place_of`.
        RuntimeError: the exchange broke off.
    """
    size, place = dist.get_world_size(), place_of(tensor.device)
    flat = tensor.view(len(tensor), math.prod(tensor.shape[1:]))
    parts = [rows_of(len(tensor), size, rank) for rank in range(size)]
    own = parts[dist.get_rank()]
    summed = flat.new_empty(len(own), flat.shape[1])
    step = max(1, PIECE // max(1, size * flat.shape[1]))
    for first in range(0, len(parts[0]), step):
        pieces = [flat[part.start : part.stop][first : first + step] for part in parts]
        sent = flat.new_zeros(size, len(pieces[0]), flat.shape[1], device=place)
        for room, piece in zip(sent, pieces, strict=True):
            room[: len(piece)] = piece
        received = torch.empty_like(sent)
        _finish(dist.all_to_all_single(received, sent, async_op=True))
        total, *others = received
        for part in others:
            total += part
        kept = pieces[dist.get_rank()]
        summed[first : first + step] = total[: len(kept)]
    return summed.view(len(own), *tensor.shape[1:])


def gather_rows(rows: Tensor, into: Tensor) -> None:
    """Put together a tensor of which each rank holds some rows (`rows_of`), bit for bit.

    Args:
        rows: `[r, ...]`, this rank's.
        into: `[R, ...]`, contiguous, of the same dtype and device.

    Raises:
        ValueError: see `place_of`.
        RuntimeError: the exchange broke off.
    """
    size, place = dist.get_world_size(), place_of(into.device)
    if not into.numel():
        return
    parts = [rows_of(len(into), size, rank) for rank in range(size)]
    width = into[0].numel() * into.itemsize
    sent = torch.zeros(len(parts[0]) * width, dtype=torch.uint8, device=place)
    sent[: len(rows) * width] = rows.detach().contiguous().view(-1).view(torch.uint8)
    whole = into.view(-1).view(torch.uint8)
    if len(into) == size * len(parts[0]) and place == into.device:
        _finish(_all_gather(whole, sent))
        return
    received = torch.empty(size, len(sent), dtype=torch.uint8, device=place)
    _finish(_all_gather(received.view(-1), sent))
    for part, piece in zip(parts, received, strict=True):
        whole[part.start * width : part.stop * width] = piece[: len(part) * width]


def _all_gather(received: Tensor, sent: Tensor) -> Any:
    """`all_gather_single`, as it is called since torch 2.13."""
    gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return gather(received, sent, async_op=True)


def _finish(work: Any) -> None:
    """Wait for an exchange, and stop waiting when a rank is known to have ended."""
    while not work.is_completed():
        check()
        time.sleep(POLL)
    work.wait()


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Flat views that cover all entries in order, as lists of at most `PIECE` entries on one device each."""
    bucket: list[Tensor] = []
    room = PIECE
    for piece in (piece for tensor in tensors for piece in tensor.view(-1).split(PIECE)):
        if bucket and (piece.numel() > room or piece.device != bucket[0].device):
            yield bucket
            bucket, room = [], PIECE
        bucket.append(piece)
        room -= piece.numel()
    if bucket:
        yield bucket
