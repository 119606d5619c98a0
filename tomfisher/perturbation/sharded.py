"""`perturb` of weights that are spread over ranks: every rank writes, and undoes, the entries that it holds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.masks import SparseMask
from tomfisher.masks.sampling import generator_of
from tomfisher.ops.dispatch import Impl
from tomfisher.ops.masked_fill import round_once, unmasked_sum
from tomfisher.perturbation.fill import Fill, squared_deviations
from tomfisher.perturbation.session import Perturbation
from tomfisher.perturbation.targets import Target, check_names, memory_of, named_tensors
from tomfisher.runtime import ranks
from tomfisher.runtime.parts import local_of, part_of
from tomfisher.runtime.sharded import check_spread, is_sharded, local_rows, settle


@dataclass(frozen=True)
class _Weight:
    """A masked tensor under all of its masked names.

    Attributes:
        names: sorted; several if weights are tied.
        tensor: a DTensor, or a plain tensor that every rank holds whole.
        index: `[k]` flat positions in the whole tensor, sorted.
        here: which of them this rank holds, rising.
        own: those as flat positions in what it holds.
        is_cut: whether other ranks hold other entries.
    """

    names: tuple[str, ...]
    tensor: Any
    index: Tensor
    here: Tensor
    own: Tensor
    is_cut: bool

    @property
    def local(self) -> Tensor:
        """What this rank holds."""
        return local_rows(self.tensor) if is_sharded(self.tensor) else self.tensor


class ShardedPerturbation(Perturbation):
    """A `Perturbation` of which every rank writes the entries that it holds; all ranks apply it together.

    What a fill needs of a whole tensor, as its mean, is added up over the ranks in float64. The undo is each rank's
    own and exchanges nothing.

    Attributes:
        mask: the entries that this rank writes, in tensors of what it holds.
    """

    def __init__(
        self,
        target: nn.Module | Mapping[str, Tensor],
        mask: SparseMask,
        fill: Fill,
        seed: int,
        compat: str | None,
        impl: Impl,
    ) -> None:
        self._team = ranks.current()
        self._model = target if isinstance(target, nn.Module) else None
        self._whole, self._whole_mask, self._compat = target, mask, compat
        self._lay_out(named_tensors(target))
        rows = _Rows(target, list(self._weight_of))
        super().__init__(rows, self.mask, Fill("values"), seed, None, impl, None)
        self.fill = fill
        self._facts = {
            "mask": mask.sha256,
            "fill": fill.kind,
            "value": fill.value.hex(),
            "seed": seed,
            "compat": compat,
        }

    def apply(self) -> ShardedPerturbation:
        """As `Perturbation.apply`, on all ranks: completely on each of them, or on none.

        Raises:
            RankError: another rank could not write.
            ValueError: ranks differ in mask, fill, seed or compat.
        """
        was_applied = self.applied
        self._settle()
        try:
            with self._team.call("perturb"):
                self._refuse_twice()
                self._team.agree("what is perturbed", self._facts)
                super().apply()
        except BaseException:
            if self.applied and not was_applied:
                self.undo()
            raise
        return self

    __enter__ = apply

    def _lay_out(self, tensors: Mapping[str, Tensor]) -> None:
        """Find what this rank holds of the masked tensors."""
        mask = self._whole_mask
        check_names(tensors, mask)
        self._tensors = {name: tensors[name] for name in mask}
        spread = {name: tensor for name, tensor in self._tensors.items() if is_sharded(tensor)}
        check_spread(spread, self._team.size)
        self._weights = _merged(self._tensors, mask)
        self._weight_of = {name: weight for weight in self._weights for name in weight.names}
        own = {name: weight.own for name, weight in self._weight_of.items()}
        shapes = {name: tuple(weight.local.shape) for name, weight in self._weight_of.items()}
        self.mask = SparseMask(own, shapes)

    def _find(self) -> None:
        tensors = named_tensors(self._whole)
        if any(tensors.get(name) is not tensor for name, tensor in self._tensors.items()):
            with torch.inference_mode(False):  # inside of it a DTensor cannot be detached
                self._lay_out(tensors)
        super()._find()

    def _undo(self) -> list[Any]:
        self._settle()
        return super()._undo()

    def _settle(self) -> None:
        """What FSDP2 left gathered after a forward is a copy of the rows."""
        if self._model is not None:
            settle(self._model)

    def _filling(self) -> Fill:
        """The fill with what it has to know of whole tensors."""
        if self.fill.kind == "mean":
            means = self._means(self._compat == "authors")
            return replace(self.fill, values=lambda target: _constant(target, means[self._of(target)]))
        if self.fill.kind == "noise":
            noise = self._noise()
            return replace(self.fill, values=lambda target: noise[self._of(target)].to(target.view))
        return self.fill

    def _of(self, target: Target) -> tuple[str, ...]:
        return self._weight_of[target.names[0]].names

    def _means(self, of_all: bool) -> dict[tuple[str, ...], float]:
        """The mean of the unmasked entries of each tensor; with `of_all` divided by the number of all entries."""
        sums = self._added("sums of the weights", [unmasked_sum(w.local, w.own) for w in self._weights])
        means = {}
        for weight, total in zip(self._weights, sums, strict=True):
            count = weight.tensor.numel() - (0 if of_all else weight.index.numel())
            label = " = ".join(weight.names)
            if not count:
                raise ValueError(
                    f"{label} is masked entirely ({weight.index.numel()} entries): no unmasked entry is left to take "
                    "the mean of. Use a smaller kappa or fill='zero'."
                )
            means[weight.names] = _finite(label, total / count)
        return means

    def _noise(self) -> dict[tuple[str, ...], Tensor]:
        """Normal draws with mean and deviation of each whole tensor, at the positions of this rank."""
        none = torch.empty(0, dtype=torch.int64)
        sums = self._added("sums of the weights", [unmasked_sum(w.local, none) for w in self._weights])
        means = [s / w.tensor.numel() for s, w in zip(sums, self._weights, strict=True)]
        squares = [squared_deviations(w.local, mean) for w, mean in zip(self._weights, means, strict=True)]
        drawn = {}
        for weight, mean, total in zip(self._weights, means, self._added("squares", squares), strict=True):
            std = math.sqrt(_finite(" = ".join(weight.names), total) / weight.tensor.numel())
            draws = generator_of(f"{self._seed}:{weight.names[0]}").standard_normal(weight.index.numel())
            drawn[weight.names] = torch.from_numpy(mean + std * draws)[weight.here]
        return drawn

    def _added(self, what: str, own: list[float]) -> list[float]:
        """Numbers of each tensor, added over the ranks that hold parts of it."""
        told = self._team.exchange(what, own)
        return [
            math.fsum(each) if weight.is_cut else each[0]
            for weight, each in zip(self._weights, zip(*told, strict=True), strict=True)
        ]


class _Rows(Mapping[str, Tensor]):
    """What this rank holds of tensors, by name, looked up anew each time."""

    def __init__(self, target: nn.Module | Mapping[str, Tensor], names: Sequence[str]) -> None:
        self._target, self._names = target, names

    def __getitem__(self, name: str) -> Tensor:
        if isinstance(self._target, nn.Module):
            holder, _, leaf = name.rpartition(".")
            tensor: Any = self._target.get_submodule(holder)._parameters[leaf]
        else:
            tensor = self._target[name]
        return local_rows(tensor) if is_sharded(tensor) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _merged(tensors: Mapping[str, Any], mask: SparseMask) -> list[_Weight]:
    """The tensors of a mask with at least one position, tied ones once, in an order that is that of all ranks.

    Raises:
        ValueError: two share memory without being the same.
    """
    together: dict[Hashable, list[str]] = {}
    for name, count in sorted(mask.counts().items()):
        if count:
            together.setdefault(memory_of(local_of(tensors[name])), []).append(name)
    weights = []
    for names in together.values():
        tensor = tensors[names[0]]
        for name in names[1:]:
            if _layout(tensors[name]) != _layout(tensor):
                raise ValueError(
                    f"{names[0]} and {name} share memory, but not shape, order or placements. Mask one of them only."
                )
        index = mask[names[0]] if len(names) == 1 else torch.cat([mask[name] for name in names]).unique()
        part = part_of(tensor)
        weights.append(_Weight(tuple(names), tensor, index, *part.find(index), part.is_cut))
    return weights


def _layout(tensor: Any) -> tuple[Any, ...]:
    return tuple(tensor.shape), tuple(tensor.stride()), getattr(tensor, "placements", None)


def _constant(target: Target, value: float) -> Tensor:
    whole = torch.full((target.index.numel(),), value, dtype=torch.float64, device=target.view.device)
    return round_once(whole, target.view.dtype)


def _finite(label: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{label} holds NaN or infinity: a fill cannot be computed. Repair the weights.")
    return value
