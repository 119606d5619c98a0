"""Sums of tensors over ranks, added in rank order: the same bits each time, for a fixed number of ranks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tomfisher.runtime.board import check

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
