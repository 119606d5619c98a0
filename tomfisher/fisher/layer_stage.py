"""One decoder layer as a stage: from the hidden states that enter it to the gradient that leaves it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tomfisher.fisher.recordings import PartBatch, Recordings, rows_of
from tomfisher.runtime.batches import Batch
from tomfisher.runtime.board import check
from tomfisher.runtime.layer_calls import Call
from tomfisher.runtime.layerwise import Layers
from tomfisher.runtime.tensor_parallel import WHOLE
from tomfisher.sample import Sample


class LayerStage:
    """A layer, between the hidden states that enter it and the gradient at its output.

    The gradients at its input go to the boundaries under `gradient_key`, where the stage below finds them.

    Args:
        layers: of the model, with the hidden states in their boundaries.
        number: of the layer.
        recordings: of the batches.
    """

    def __init__(self, layers: Layers, number: int, recordings: Recordings) -> None:
        self.model: nn.Module = layers.model
        self.split = WHOLE
        self._number, self._recordings = number, recordings
        self._layer = layers.modules[number]
        self._name = layers.opened.layers[number][0]
        self._leaf: Tensor | None = None
        self._partial: dict[Call, Tensor] = {}

    def plan(
        self, samples: Sequence[Sample], indices: Sequence[int], tokens: int, rows: int | None
    ) -> list[list[int]]:
        """See `Recordings`."""
        return self._recordings.plan(samples, indices, tokens, rows)

    def batch(self, samples: Sequence[Sample], indices: Sequence[int]) -> PartBatch:
        """See `Recordings`."""
        return self._recordings.batch(samples, indices)

    def forward(self, batch: Batch) -> Tensor:
        """The layer's output, `[B, T, D]`."""
        assert isinstance(batch, PartBatch)
        check()
        hidden = batch.call.boundaries[self._number, batch.call]
        self._leaf = rows_of(hidden, batch).detach().requires_grad_()
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
        """See `Stage`: the gradient at the output is the one of each batch."""
        stage = copy.copy(self)
        stage._recordings = self._recordings.probing()
        return stage

    def finish(self) -> None:
        """Complete the gradients at the input: of batches that went through in parts, or not at all."""
        for call, gradient in self._partial.items():
            self._keep(call, gradient)
        for call in self._recordings.calls:
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
        return rows_of(batch.call.boundaries[gradient_key(self._number + 1, batch.call)], batch)


def gradient_key(number: int, call: Call) -> tuple[str, int, Call]:
    """Where the boundaries keep the gradient that enters layer `number - 1` from above."""
    return "gradient", number, call
