"""One decoder layer as a stage: from the hidden states that enter it to the gradient that leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tomfisher.runtime.batches import Batch, collate
from tomfisher.runtime.layer_calls import Call
from tomfisher.runtime.layerwise import Layers
from tomfisher.runtime.tensor_parallel import WHOLE
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


class LayerStage:
    """A layer, between the hidden states that enter it and the gradient at its output.

    The gradients at its input go to the boundaries under `gradient_key`, where the stage below finds them.

    Args:
        layers: of the model, with the hidden states in their boundaries.
        number: of the layer.
        run: the batches of the run.
        probes: those of the probe.
    """

    def __init__(
        self, layers: Layers, number: int, run: Sequence[Recorded], probes: Sequence[Recorded]
    ) -> None:
        self.model: nn.Module = layers.model
        self.split = WHOLE
        self._number, self._run = number, run
        self._layer = layers.modules[number]
        self._name = layers.opened.layers[number][0]
        self._whole = {_content(r.batch): r.call for r in (*run, *probes)}
        self._row: dict[bytes, tuple[Recorded, int]] = {}
        for recorded in (*probes, *run):
            for row, length in enumerate(recorded.batch.lengths):
                ids, labels = recorded.batch.input_ids[row, :length], recorded.batch.labels[row, :length]
                self._row[_key(ids, labels)] = recorded, row
        self._leaf: Tensor | None = None
        self._partial: dict[Call, Tensor] = {}

    def plan(
        self, samples: Sequence[Sample], indices: Sequence[int], tokens: int, rows: int | None
    ) -> list[list[int]]:
        """See `Stage`: the batches that were recorded, or parts of them where they are too large."""
        wanted, batches = set(indices), []
        for recorded in self._run:
            inside = [i for i in recorded.batch.indices if i in wanted]
            most = max(1, tokens // recorded.batch.shape[1]) if rows is None else rows
            batches += [inside[start : start + most] for start in range(0, len(inside), most)]
        return batches

    def batch(self, samples: Sequence[Sample], indices: Sequence[int]) -> PartBatch:
        """See `Stage`: a recorded batch, or rows of one, padded as it was."""
        batch = collate(samples, indices)
        whole = self._whole.get(_content(batch))
        if whole is not None:
            return PartBatch(batch.indices, batch.lengths, batch.input_ids, batch.labels, whole, None)
        places = [self._row[_key(samples[i].input_ids, samples[i].labels)] for i in indices]
        (parent,) = {id(recorded): recorded for recorded, _ in places}.values()
        rows = tuple(row for _, row in places)
        ids, labels = parent.batch.input_ids[list(rows)], parent.batch.labels[list(rows)]
        return PartBatch(batch.indices, batch.lengths, ids, labels, parent.call, rows)

    def forward(self, batch: Batch) -> Tensor:
        """The layer's output, `[B, T, D]`."""
        assert isinstance(batch, PartBatch)
        hidden = batch.call.boundaries[self._number, batch.call]
        self._leaf = _rows(hidden, batch.rows).detach().requires_grad_()
        return batch.call.run(self._number, self._layer, self._leaf, batch.rows)

    def backward(self, outputs: Tensor, batch: Batch) -> None:
        """See `Stage`; the gradient at the layer's input is kept."""
        assert isinstance(batch, PartBatch) and self._leaf is not None
        leaf, self._leaf = self._leaf, None
        outputs.backward(self._above(batch))
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        if batch.rows is None:
            self._keep(batch.call, gradient)
            return
        whole = self._partial.setdefault(batch.call, gradient.new_zeros(batch.call.shape))
        whole[list(batch.rows)] = gradient

    def per_sample(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Of every sample the sum of the gradient at the layer's output."""
        assert isinstance(batch, PartBatch)
        return self._above(batch).flatten(1).sum(1, dtype=torch.float32)

    def check(self, values: Tensor, called: list[str]) -> None:
        """See `Stage`."""
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            raise FloatingPointError(
                f"The gradient at the output of {self._name} is not finite for {called[int(bad[0])]}. "
                "Load the model in float32 or bfloat16, or leave this sample out."
            )

    def probing(self) -> LayerStage:
        """See `Stage`: the gradient at the output is the one that the run has."""
        return self

    def finish(self) -> None:
        """Complete the gradients at the input: of batches that went through in parts, or not at all."""
        for call, gradient in self._partial.items():
            self._keep(call, gradient)
        for call in self._whole.values():
            kept = call.boundaries
            if gradient_key(self._number, call) not in kept:
                hidden = kept[self._number, call].detach().requires_grad_()
                call.run(self._number, self._layer, hidden).backward(
                    kept[gradient_key(self._number + 1, call)]
                )
                assert hidden.grad is not None
                self._keep(call, hidden.grad)

    def _keep(self, call: Call, gradient: Tensor) -> None:
        call.boundaries[gradient_key(self._number, call)] = gradient

    def _above(self, batch: PartBatch) -> Tensor:
        return _rows(batch.call.boundaries[gradient_key(self._number + 1, batch.call)], batch.rows)


def gradient_key(number: int, call: Call) -> tuple[str, int, Call]:
    """Where the boundaries keep the gradient that enters layer `number - 1` from above."""
    return "gradient", number, call


def _rows(tensor: Tensor, rows: tuple[int, ...] | None) -> Tensor:
    return tensor if rows is None else tensor[list(rows)]


def _content(batch: Batch) -> bytes:
    return _key(batch.input_ids, batch.labels) + bytes(str(batch.lengths), "ascii")


def _key(ids: Tensor, labels: Tensor) -> bytes:
    return bytes(str(tuple(ids.shape)), "ascii") + ids.numpy().tobytes() + labels.numpy().tobytes()
