"""What a Fisher run sends its batches through: the whole model, or a part of it between two boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from tomfisher.fisher.objective import Labels, Reduction, backward, check_losses, sample_losses
from tomfisher.runtime.batches import Batch, collate
from tomfisher.runtime.rules import Rules
from tomfisher.runtime.tensor_parallel import WHOLE, Split
from tomfisher.sample import Sample


class Stage(Protocol):
    """A part of a model through which batches go forward and back.

    Attributes:
        model: the model that the part belongs to.
        split: which part of its parameters this rank holds.
    """

    model: nn.Module
    split: Split

    def plan(
        self, samples: Sequence[Sample], indices: Sequence[int], tokens: int, rows: int | None
    ) -> list[list[int]]:
        """The batches in which the samples at `indices` go, each of at most so many tokens and rows."""
        ...

    def batch(self, samples: Sequence[Sample], indices: Sequence[int]) -> Batch:
        """These samples as one batch."""
        ...

    def forward(self, batch: Batch) -> Tensor:
        """What the backward pass starts from: a loss per sample, or the part's output `[B, T, D]`."""
        ...

    def backward(self, outputs: Tensor, batch: Batch) -> None:
        """The gradient of every sample's loss, from the part's output down to its input."""
        ...

    def per_sample(self, outputs: Tensor, batch: Batch) -> Tensor:
        """`[B]`, finite where all that the backward pass starts from is, for each sample."""
        ...

    def check(self, values: Tensor, called: list[str]) -> None:
        """Raise FloatingPointError for `per_sample` values that are not finite; `called` names the samples."""
        ...

    def probing(self) -> Stage:
        """The same with the labels that the samples have, for comparing capture with autograd."""
        ...


class WholeModel:
    """A resident model, from token ids to losses.

    Args:
        model: a transformers causal language model.
        rules: which rows may stand in one batch; None for any.
        labels: see `sample_losses`, as are the others.
        reduction: over the tokens of one sample.
        seed: for labels="sampled".
        split: how its parameters are split over ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Rules | None = None,
        labels: Labels = "empirical",
        reduction: Reduction = "mean",
        seed: int = 0,
        split: Split = WHOLE,
    ) -> None:
        self.model, self.rules, self.split = model, rules or Rules(), split
        self.labels, self.reduction, self.seed = labels, reduction, seed

    def plan(
        self, samples: Sequence[Sample], indices: Sequence[int], tokens: int, rows: int | None
    ) -> list[list[int]]:
        """See `Stage`: the longest samples first, as the rules allow."""
        batches = self.rules.plan([len(samples[i]) for i in indices], tokens, rows)
        return [[indices[i] for i in batch] for batch in batches]

    def batch(self, samples: Sequence[Sample], indices: Sequence[int]) -> Batch:
        """See `Stage`."""
        return collate(samples, indices)

    def forward(self, batch: Batch) -> Tensor:
        """`sample_losses`, `[B]`."""
        return sample_losses(self.model, batch, self.labels, self.reduction, self.seed)

    def backward(self, outputs: Tensor, batch: Batch) -> None:
        """See `Stage`."""
        backward(outputs)

    def per_sample(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The losses themselves."""
        return outputs.detach().float()

    def check(self, values: Tensor, called: list[str]) -> None:
        """`check_losses`."""
        check_losses(self.model, values, called)

    def probing(self) -> WholeModel:
        """See `Stage`."""
        return WholeModel(self.model, self.rules, "empirical", self.reduction, split=self.split)
