"""Sums of which every rank has its rows: added over the ranks, written to one store that grows, or kept as they are."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tomfisher.files import sync_handle
from tomfisher.fisher.disk import write_at
from tomfisher.fisher.growing import SHARDS, GrowingStore
from tomfisher.fisher.journal import unfinished_of
from tomfisher.fisher.shards import ITEM, Shapes, lay_out, sha256_of_part
from tomfisher.fisher.together import check_sums
from tomfisher.runtime.parts import placed_like
from tomfisher.runtime.ranks import Team
from tomfisher.runtime.sharded import rows_of
from tomfisher.tensor_files import bytes_of


def add_up_rows(team: Team, F: dict[str, Tensor]) -> dict[str, Tensor]:
    """This rank's rows of the sums of all ranks, with the bits of `add_up`.

    Args:
        team: the ranks; of one, all rows are its own.
        F: `[R, ...]` by name, of this rank's samples; emptied on the way.

    Raises:
        FloatingPointError: they do not fit into float32.
    """
    rows = {name: team.sum_rows(torch.atleast_1d(F.pop(name))) for name in list(F)}
    check_sums(rows)
    return rows


class SharedStore:
    """A store to which every rank of a team writes its rows, and whose journal rank 0 keeps.

    Args:
        team: the ranks.
        path: of the store.
        shapes: of its tensors.
        store: on rank 0, the store.
    """

    def __init__(self, team: Team, path: Path, shapes: Shapes, store: GrowingStore | None) -> None:
        self._team, self._folder, self._shapes, self._store = (
            team,
            unfinished_of(path) / SHARDS,
            shapes,
            store,
        )
        self._layout = lay_out(shapes)

    def write(self, rows: Mapping[str, Tensor]) -> None:
        """Write this rank's rows of some tensors at their places.

        On rank 0 the rows of all ranks then count as written: the others have written theirs by now.
        """
        for name, tensor in rows.items():
            parts = [rows_of(self._length(name), self._team.size, r) for r in range(self._team.size)]
            own = parts[self._team.rank]
            if self._store is None:
                self._write_there(name, tensor, own.start)
            elif not self._shapes[name]:
                self._store.write(name, tensor.view(()))
            else:
                self._store.write(name, tensor, slice(own.start, own.stop))
                for part in parts[1:]:
                    self._store.note_rows(name, part.start, part.stop)

    def digests(self) -> dict[str, str]:
        """SHA-256 of every tensor; each rank reads some of them. Of one rank none, which has hashed what it wrote."""
        if self._team.size == 1:
            return {}
        names = list(self._shapes)
        own = self._team.share([math.prod(shape) for shape in self._shapes.values()])
        found = self._team.merged("checksums", len(names), {i: self._digest(names[i]) for i in own})
        return dict(zip(names, found, strict=True))

    def _digest(self, name: str) -> str:
        shard = self._layout.shards[self._layout.weight_map[name]]
        return sha256_of_part(
            self._folder / shard.file, shard.starts[name], ITEM * math.prod(self._shapes[name])
        )

    def _write_there(self, name: str, rows: Tensor, first: int) -> None:
        shard = self._layout.shards[self._layout.weight_map[name]]
        place = shard.starts[name] + first * ITEM * math.prod(self._shapes[name][1:])
        handle = os.open(self._folder / shard.file, os.O_WRONLY)
        try:
            write_at(handle, bytes_of(rows.detach().cpu().contiguous()), place)
            sync_handle(handle)
        finally:
            os.close(handle)

    def _length(self, name: str) -> int:
        return self._shapes[name][0] if self._shapes[name] else 1


def placed_as(
    team: Team, shards: Mapping[str, Any], rows: Mapping[str, Tensor], shapes: Shapes
) -> dict[str, Any]:
    """Sums of which every rank has its rows, as the parameters are: DTensors, or whole where those are plain.

    Args:
        team: all ranks of the shards' mesh; each makes this call.
        shards: the parameters that are DTensors, by name.
        rows: `[r, ...]` by name, in the same order on all ranks.
        shapes: of the whole tensors.
    """
    return {
        name: placed_like(shards[name], own) if name in shards else _put_together(team, own, shapes[name])
        for name, own in rows.items()
    }


def _put_together(team: Team, rows: Tensor, shape: Sequence[int]) -> Tensor:
    whole = rows.new_empty(tuple(shape))
    team.gather_rows(rows, torch.atleast_1d(whole))
    return whole
