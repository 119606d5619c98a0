"""A change of a few weights: entries with old and new values, in a model or in a small file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tomfisher.masks import SparseMask
from tomfisher.ops.dispatch import Impl
from tomfisher.ops.scatter import gather
from tomfisher.perturbation.fill import Fill
from tomfisher.perturbation.session import Perturbation
from tomfisher.perturbation.targets import Target, named_tensors
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.tensor_files import TensorFile, sha256_of_tensors

if TYPE_CHECKING:
    from typing_extensions import Self

_PARTS = ("index", "old", "new")
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


DELTA = TensorFile("delta", 1, sha256_of_tensors, "Delta.save", "Train again.")


@dataclass(frozen=True, eq=False)
class Delta:
    """Entries of named tensors with their values before and after a training.

    Args:
        shapes: shape of every tensor.
        indices: per tensor `[k]` int64, strictly rising flat row-major positions.
        old: per tensor `[k]`, in the weight's dtype: what stood there before.
        new: per tensor `[k]`, same dtype, finite: what was learned.
        metadata: JSON-like facts about where it comes from.

    Raises:
        TypeError: positions are not int64, or values are of no dtype that weights have.
        ValueError: names or lengths differ, positions are unsorted, repeated or out of range, or a new value is
            not finite.
    """

    shapes: Mapping[str, tuple[int, ...]]
    indices: Mapping[str, Tensor]
    old: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = (self.shapes, self.indices, self.old, self.new)
        if any(set(part) != set(self.shapes) for part in parts):
            raise ValueError("A delta's shapes, indices, old and new values must name the same tensors.")
        self.mask()
        for name, index in self.indices.items():
            _check_values(name, index, self.old[name], self.new[name])

    def __repr__(self) -> str:
        return f"Delta({self.nnz} entries in {len(self.shapes)} tensors)"

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return sum(index.numel() for index in self.indices.values())

    def mask(self) -> SparseMask:
        """The entries as a mask."""
        return SparseMask(self.indices, self.shapes, parents=["delta"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, all or nothing."""
        tensors = {
            f"{part}:{name}": value
            for part, values in zip(_PARTS, (self.indices, self.old, self.new), strict=True)
            for name, value in values.items()
        }
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        DELTA.write(path, tensors, {"shapes": shapes, "metadata": self.metadata})

    @classmethod
    @plain_torch()
    def load(cls, path: str | os.PathLike[str]) -> Delta:
        """Read a file that `save` wrote, and check it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no delta, was written by a newer version, or is damaged.
        """
        tensors, header = DELTA.read(path)
        try:
            shapes = {name: tuple(map(int, shape)) for name, shape in header["shapes"].items()}
            index, old, new = ({name: tensors.pop(f"{part}:{name}") for name in shapes} for part in _PARTS)
            if tensors:
                raise ValueError(f"it holds tensors of no use, such as {next(iter(tensors))!r}.")
            return cls(shapes, index, old, new, dict(header["metadata"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{os.fspath(path)} is damaged: {error} Train again.") from error


class AppliedDelta(Perturbation):
    """A delta that stands in a model; as a context manager it is undone at the end of the block.

    Attributes:
        delta: what was written.
    """

    def __init__(self, model: nn.Module, delta: Delta, impl: Impl) -> None:
        self.delta = delta
        super().__init__(model, delta.mask(), Fill("values", values=self._values), 0, None, impl, None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.nnz} entries, {'applied' if self.applied else 'undone'})"

    def __enter__(self) -> Self:
        return self

    def reapply(self) -> None:
        """Write the new values again, after `undo`."""
        self.apply()

    def _values(self, target: Target) -> Tensor:
        """The new values in the order in which the target has its entries."""
        index, new = (
            torch.cat([part[name] for name in target.names]).to(target.view.device)
            for part in (self.delta.indices, self.delta.new)
        )
        order = index.argsort()
        return new[order[torch.searchsorted(index[order], target.positions())]]


@plain_torch()
def apply(model: nn.Module, delta: Delta, check: bool = True, impl: Impl = "auto") -> AppliedDelta:
    """Write a delta's new values into a model.

    Example::

        with tomfisher.finetune.apply(model, Delta.load("delta.safetensors")):   # undone at the end of the block
            ...

    Args:
        model: of the same tensors, in the dtype that was trained.
        delta: what to write.
        check: refuse a model whose entries do not hold the delta's old values, bit for bit.
        impl: implementation of the write.

    Returns:
        The applied delta; `undo()` writes back what stood there, `reapply()` the new values again.

    Raises:
        TypeError: a weight is quantised, of an integer dtype, or distributed.
        ValueError: the delta is of another model, another dtype, or (`check`) of other values.
    """
    applied = AppliedDelta(model, delta, impl)
    named = named_tensors(model)
    for name, index in delta.indices.items():
        expected, weight = delta.old[name], named[name].detach()
        if expected.dtype != weight.dtype:
            raise ValueError(
                f"{name} is {weight.dtype} here, the delta was trained in {expected.dtype}. "
                "Load the model in that dtype."
            )
        there = gather(weight, index.to(weight.device)).cpu()
        differing = int((_bits(there) != _bits(expected)).sum())
        if check and differing:
            raise ValueError(
                f"{differing} of {index.numel()} entries of {name} do not hold the values that the training "
                "began with: the delta is of other weights. Load the model it was trained from, or pass check=False."
            )
    applied.apply()
    return applied


def _bits(values: Tensor) -> Tensor:
    return values.view(_BITS[values.element_size()])


def _check_values(name: str, index: Tensor, old: Tensor, new: Tensor) -> None:
    if old.dtype not in _DTYPES or new.dtype != old.dtype:
        raise TypeError(
            f"Values of {name!r} must be of one floating-point dtype, got {old.dtype}, {new.dtype}."
        )
    if not old.shape == new.shape == index.shape:
        raise ValueError(
            f"Values of {name!r} must be vectors of {index.numel()} numbers, one per position, got shapes "
            f"{tuple(old.shape)} and {tuple(new.shape)}."
        )
    if not bool(new.isfinite().all()):
        raise ValueError(f"New values of {name!r} must be finite.")
