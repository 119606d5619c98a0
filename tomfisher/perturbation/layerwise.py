"""A mask on a model whose layers come and go: the part of each layer is written while that layer is there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from tomfisher.masks import SparseMask
from tomfisher.perturbation.fill import Fill, FillLike
from tomfisher.perturbation.prepare import perturb
from tomfisher.perturbation.sums import WeightSums
from tomfisher.perturbation.targets import check_names, named_tensors

OUTSIDE = -1


@dataclass(frozen=True)
class State:
    """Weights as they are, or with a mask written into them; the arguments are those of `perturb`."""

    mask: SparseMask | None = None
    fill: FillLike = "mean"
    seed: int = 0
    compat: str | None = None


class LayerwisePerturbation:
    """`perturb`, one layer at a time.

    A part of the mask is written when its block is entered, and undone to the bit when it is left, as by `perturb` of
    the whole model: fills look at one tensor only.

    Args:
        model: the model; the values of its weights need not be in memory.
        layers: its layers, in order; a weight that is in none of them is outside.
        state: what is written.

    Attributes:
        implementations: which implementation of each operation ran, keyed like "scatter_@cpu".

    Raises:
        ValueError: the mask is of another model, or takes all of a tensor whose mean is asked for.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], state: State) -> None:
        self.implementations: dict[str, str] = {}
        self._state = state
        self._counts: dict[int, int] = {}
        self._tensors: dict[int, dict[str, Tensor]] = {}
        if state.mask is None:
            return
        tensors = named_tensors(model)
        check_names(tensors, state.mask)
        _check_rest(state.mask, state)
        owner = {id(p): number for number, layer in enumerate(layers) for p in layer.parameters()}
        for name, index in state.mask.items():
            if index.numel():
                part = owner.get(id(tensors[name]), OUTSIDE)
                self._tensors.setdefault(part, {})[name] = tensors[name]

    @property
    def nnz(self) -> int:
        """Entries written, in the parts that were entered; those of tied weights count once."""
        return sum(self._counts.values())

    @property
    def is_inside(self) -> bool:
        """Whether nothing outside the layers is written."""
        return OUTSIDE not in self._tensors

    @contextmanager
    def applied(self, part: int, sums: WeightSums | None = None) -> Iterator[None]:
        """The part of the mask in a layer, or `OUTSIDE` of them, is written inside the block.

        Args:
            part: number of the layer, whose weights are in memory.
            sums: as in `perturb`.
        """
        tensors, state = self._tensors.get(part), self._state
        if tensors is None or state.mask is None:
            yield
            return
        mask = SparseMask({n: state.mask[n] for n in tensors}, {n: state.mask.shapes[n] for n in tensors})
        with perturb(tensors, mask, state.fill, state.seed, state.compat, sums=sums) as perturbation:
            self._counts[part] = perturbation.nnz
            self.implementations |= perturbation.implementations
            yield


def _check_rest(mask: SparseMask, state: State) -> None:
    """Refuse before the work what a mean fill would refuse in the middle of it."""
    if Fill.parse(state.fill).kind != "mean" or state.compat is not None:
        return
    for name, count in mask.counts().items():
        if count and count == math.prod(mask.shapes[name]):
            raise ValueError(
                f"{name} is masked entirely ({count} entries): no unmasked entry is left to take the mean of. Use a "
                "smaller kappa or fill='zero'."
            )
