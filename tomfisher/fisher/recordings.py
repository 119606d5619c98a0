"""Batches that went through a model layer by layer, and samples of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tomfisher.runtime.batches import Batch, collate
from tomfisher.runtime.layer_calls import Call
from tomfisher.sample import Sample


@dataclass(frozen=True)
class Recorded:
    """A batch that went through the model, and how its layers saw it.

    Attributes:
        batch: its samples.
        call: from `Layers.recording`.
    """

    batch: Batch
    call: Call


@dataclass(frozen=True)
class PartBatch(Batch):
    """Samples of a recorded batch.

    Attributes:
        call: of the recorded batch.
        rows: of it, where the samples are; None for all of it, in order.
    """

    call: Call
    rows: tuple[int, ...] | None


class Recordings:
    """The batches that were recorded for a run and for its probe, from which every stage takes its own.

    Args:
        run: the batches of the run.
        probes: those of the probe.
    """

    def __init__(self, run: Sequence[Recorded], probes: Sequence[Recorded]) -> None:
        self._run, self._probes = run, probes
        # a batch that is in both is the run's, whose labels may be drawn from the model
        self._whole = {_content(r.batch): r.call for r in (*probes, *run)}
        self._of_run = {r.call for r in run}
        self._row: dict[bytes, tuple[Recorded, int]] = {}
        for recorded in (*probes, *run):
            for row, length in enumerate(recorded.batch.lengths):
                ids, labels = recorded.batch.input_ids[row, :length], recorded.batch.labels[row, :length]
                self._row[_key(ids, labels)] = recorded, row

    @property
    def calls(self) -> list[Call]:
        """Of every batch."""
        return [recorded.call for recorded in (*self._run, *self._probes)]

    def probing(self) -> Recordings:
        """The same for the probe: a batch that is in both is its own, as each of its samples alone is."""
        found = copy.copy(self)
        found._whole = {**self._whole, **{_content(r.batch): r.call for r in self._probes}}
        return found

    def is_of_run(self, batch: Batch) -> bool:
        """Whether a batch is one of the run's, or of rows of one, and not of the probe's."""
        assert isinstance(batch, PartBatch)
        return batch.call in self._of_run

    def plan(
        self, samples: Sequence[Sample], indices: Sequence[int], tokens: int, rows: int | None
    ) -> list[list[int]]:
        """The batches that were recorded, or parts of them where they are too large."""
        wanted, batches = set(indices), []
        for recorded in self._run:
            inside = [i for i in recorded.batch.indices if i in wanted]
            most = max(1, tokens // recorded.batch.shape[1]) if rows is None else rows
            batches += [inside[start : start + most] for start in range(0, len(inside), most)]
        return batches

    def batch(self, samples: Sequence[Sample], indices: Sequence[int]) -> PartBatch:
        """A recorded batch, or rows of one, padded as it was."""
        batch = collate(samples, indices)
        whole = self._whole.get(_content(batch))
        if whole is not None:
            return PartBatch(batch.indices, batch.lengths, batch.input_ids, batch.labels, whole, None)
        places = [self._row[_key(samples[i].input_ids, samples[i].labels)] for i in indices]
        (parent,) = {id(recorded): recorded for recorded, _ in places}.values()
        rows = tuple(row for _, row in places)
        ids, labels = parent.batch.input_ids[list(rows)], parent.batch.labels[list(rows)]
        return PartBatch(batch.indices, batch.lengths, ids, labels, parent.call, rows)


def rows_of(tensor: Tensor, batch: PartBatch) -> Tensor:
    """The rows of a recorded batch's tensor that belong to these samples."""
    return tensor if batch.rows is None else tensor[list(batch.rows)]


def _content(batch: Batch) -> bytes:
    return _key(batch.input_ids, batch.labels) + bytes(str(batch.lengths), "ascii")


def _key(ids: Tensor, labels: Tensor) -> bytes:
    return bytes(str(tuple(ids.shape)), "ascii") + ids.numpy().tobytes() + labels.numpy().tobytes()
