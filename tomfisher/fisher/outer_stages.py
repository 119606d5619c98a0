"""What lies before and after the layers as stages of a layer-by-layer run, and which parameters belong to which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tomfisher.fisher.layer_stage import LayerStage, gradient_key
from tomfisher.fisher.recordings import PartBatch, Recordings, rows_of
from tomfisher.fisher.stage import WholeModel
from tomfisher.runtime.batches import Batch
from tomfisher.runtime.forward import forward, ordinary_ids
from tomfisher.runtime.layer_calls import WAY, Call, UnsupportedLayers
from tomfisher.runtime.layerwise import Layers
from tomfisher.runtime.modes import frozen
from tomfisher.runtime.tensor_parallel import WHOLE
from tomfisher.sample import Sample


@dataclass(frozen=True)
class Outer:
    """Selected parameters outside the layers.

    Attributes:
        after: those that have no part in what enters the first layer, by name.
        before: those that have.
        both: whether some of `before` have a part in what comes after the layers too, as tied embeddings do.
        needed: names of the parameters that have their values while `before` is seen to.
    """

    after: dict[str, nn.Parameter] = field(default_factory=dict)
    before: dict[str, nn.Parameter] = field(default_factory=dict)
    both: bool = False
    needed: tuple[str, ...] = ()


def outer_of(layers: Layers, selection: Mapping[str, nn.Parameter]) -> Outer:
    """Which selected parameters lie before and after the layers, as the graph of a short text says.

    Args:
        layers: of the model, whose parameters outside the layers have their values.
        selection: from `select_parameters`.

    Raises:
        UnsupportedLayers: one of them has a part in what layers get beside the hidden states.
    """
    inside = {name for names in layers.parameters for name in names}
    chosen = {name: parameter for name, parameter in selection.items() if name not in inside}
    if not chosen:
        return Outer()
    model, arguments, entering = layers.model, list[Tensor](), list[Tensor]()
    outside = {n: p for n, p in model.named_parameters() if n not in inside and p.dtype.is_floating_point}

    def last(call: Call, hidden: Tensor) -> Tensor:
        entering.append(hidden)
        arguments.extend(call.tensors())
        return hidden.detach().requires_grad_()

    with frozen(model, tuple(outside.values())), layers.ended_by(last):
        logits = forward(model, torch.tensor([ordinary_ids(model)[:8]])).logits
    below, above, aside = _reached(entering), _reached([logits]), _reached(arguments)
    for name, parameter in chosen.items():
        if parameter in aside:
            raise UnsupportedLayers(
                f"{name} also has a part in what the layers get beside the hidden states, through which no gradient "
                f"goes layer by layer. Leave it out of the selection, or load the model whole. {WAY}"
            )
    before = {name: parameter for name, parameter in chosen.items() if parameter in below}
    both = any(parameter in above for parameter in before.values())
    return Outer(
        {name: parameter for name, parameter in chosen.items() if name not in before},
        before,
        both,
        tuple(n for n, p in outside.items() if both or p in below or p not in above) if before else (),
    )


class _Recorded:
    """A stage whose batches are those of the layers."""

    def __init__(self, layers: Layers, recordings: Recordings, losses: WholeModel) -> None:
        self.model: nn.Module = layers.model
        self.split = WHOLE
        self._layers, self._recordings, self._losses = layers, recordings, losses
        self._depth = len(layers.modules)

    def plan(
        self, samples: Sequence[Sample], indices: Sequence[int], tokens: int, rows: int | None
    ) -> list[list[int]]:
        """See `Recordings`."""
        return self._recordings.plan(samples, indices, tokens, rows)

    def batch(self, samples: Sequence[Sample], indices: Sequence[int]) -> PartBatch:
        """See `Recordings`."""
        return self._recordings.batch(samples, indices)

    def _leaving(self, batch: Batch) -> Tensor:
        """What the last layer has made of the batch, as a leaf."""
        assert isinstance(batch, PartBatch)
        hidden = batch.call.boundaries[self._depth, batch.call]
        return rows_of(hidden, batch).detach().requires_grad_()


class AfterLayers(_Recorded):
    """From what the last layer has made to the losses.

    Args:
        layers: of the model, with what the last layer has made in their boundaries.
        recordings: of the batches.
        losses: how losses are made of logits.
    """

    def forward(self, batch: Batch) -> Tensor:
        """A loss per sample, `[B]`."""
        leaf = self._leaving(batch)
        with self._layers.ended_by(lambda call, hidden: leaf):
            return self._losses.forward(batch)

    def backward(self, outputs: Tensor, batch: Batch) -> None:
        """See `Stage`."""
        self._losses.backward(outputs, batch)

    def per_sample(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The losses themselves."""
        return self._losses.per_sample(outputs, batch)

    def check(self, values: Tensor, called: list[str]) -> None:
        """See `Stage`."""
        self._losses.check(values, called)

    def probing(self) -> AfterLayers:
        """See `Stage`."""
        return AfterLayers(self._layers, self._recordings.probing(), self._losses.probing())


class _Reached(Exception):
    """The layers are reached, and what comes after them is not asked for."""


class BeforeLayers(_Recorded):
    """From token ids to the hidden states that enter the first layer, whose gradient is in the boundaries.

    Args:
        layers: of the model, all of which are done.
        recordings: of the batches.
        losses: how losses are made of logits.
        both: whether what comes after the layers belongs to it too: a tied parameter gets both gradients of a sample
            in one backward pass.
    """

    def __init__(self, layers: Layers, recordings: Recordings, losses: WholeModel, both: bool) -> None:
        super().__init__(layers, recordings, losses)
        self._both = both
        self._loss: Tensor | None = None

    def forward(self, batch: Batch) -> Tensor:
        """What enters the first layer, `[B, T, D]`."""
        entering: list[Tensor] = []

        def last(call: Call, hidden: Tensor) -> Tensor:
            entering.append(hidden)
            if not self._both:
                raise _Reached
            return self._leaving(batch)

        losses = self._losses if self._recordings.is_of_run(batch) else self._losses.probing()
        with self._layers.ended_by(last):
            try:
                self._loss = losses.forward(batch).sum()
            except _Reached:
                self._loss = None
        return entering[0]

    def backward(self, outputs: Tensor, batch: Batch) -> None:
        """See `Stage`."""
        roots, gradients = [outputs], [self._above(batch)]
        if self._loss is not None:
            roots, gradients = [*roots, self._loss], [*gradients, torch.ones_like(self._loss)]
        needed = [root.requires_grad for root in roots]
        self._loss = None
        torch.autograd.backward(
            [root for root, is_needed in zip(roots, needed, strict=True) if is_needed],
            [gradient for gradient, is_needed in zip(gradients, needed, strict=True) if is_needed],
        )

    def per_sample(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Of every sample the sum of the gradient at what enters the first layer."""
        return self._above(batch).flatten(1).sum(1, dtype=torch.float32)

    def check(self, values: Tensor, called: list[str]) -> None:
        """See `Stage`."""
        LayerStage(self._layers, 0, self._recordings).check(values, called)

    def probing(self) -> BeforeLayers:
        """See `Stage`: the gradient is the one of each batch."""
        return BeforeLayers(self._layers, self._recordings.probing(), self._losses, self._both)

    def _above(self, batch: Batch) -> Tensor:
        assert isinstance(batch, PartBatch)
        return rows_of(batch.call.boundaries[gradient_key(0, batch.call)], batch)


def _reached(tensors: Iterable[Tensor]) -> set[Tensor]:
    """The leaves that these were computed from."""
    seen, left, found = set(), [t.grad_fn for t in tensors], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        left += [following for following, _ in node.next_functions]
    return found
