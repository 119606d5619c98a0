"""`SparseMask`: for each tensor the sorted flat positions of the chosen entries."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tomfisher.masks import store
from tomfisher.masks.sampling import sample_positions
from tomfisher.runtime.torch_state import plain_torch

Patterns = str | Iterable[str] | Callable[[str], bool]


class SparseMask(Mapping[str, Tensor]):
    """Chosen entries of named tensors: a mapping from name to sorted int64 flat row-major positions `[k]`.

    Set algebra works per tensor: `a - b`, `a & b`, `a | b`. A tensor that a mask does not name has no entry
    there; the result names the tensors of `a` (for `-`), of both (`&`), of either (`|`).
    Two masks are equal when they name the same tensors, of the same shapes, with the same entries.

    Args:
        indices: per tensor a vector of flat positions, int64, strictly rising. Kept on the CPU.
        shapes: shape of every tensor the mask speaks of; one without positions has none chosen.
        kappa: the fraction that was selected, if one κ describes the mask.
        scope: "tensor", "layer" or "model", where the selection was taken.
        parents: where the mask comes from: texts or JSON-like dicts.

    Raises:
        TypeError: positions are not int64.
        ValueError: a tensor has no shape, or its positions are unsorted, repeated or out of range.
    """

    @plain_torch()
    def __init__(
        self,
        indices: Mapping[str, Tensor],
        shapes: Mapping[str, Sequence[int]],
        kappa: float | None = None,
        scope: str | None = None,
        parents: Sequence[str | dict[str, Any]] = (),
    ) -> None:
        if missing := [name for name in indices if name not in shapes]:
            raise ValueError(f"shapes must name every tensor of the mask, it lacks {store.some(missing)}.")
        self.shapes: dict[str, tuple[int, ...]] = {n: tuple(map(int, s)) for n, s in shapes.items()}
        self.kappa = kappa
        self.scope = scope
        self.parents: tuple[str | dict[str, Any], ...] = tuple(parents)
        none = torch.empty(0, dtype=torch.int64)
        self._indices = {n: _checked(n, indices.get(n, none), self._numel(n)) for n in self.shapes}

    def __getitem__(self, name: str) -> Tensor:
        return self._indices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseMask):
            return NotImplemented
        return self.shapes == other.shapes and all(torch.equal(self[name], other[name]) for name in self)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        kappa = "" if self.kappa is None else f", kappa={self.kappa:g}, scope={self.scope!r}"
        return f"SparseMask({self.nnz} of {self.numel} entries in {len(self)} tensors{kappa})"

    def _numel(self, name: str) -> int:
        return torch.Size(self.shapes[name]).numel()

    @property
    def nnz(self) -> int:
        """Number of chosen entries, over all tensors."""
        return sum(self.counts().values())

    @property
    def numel(self) -> int:
        """Number of entries of all named tensors, chosen or not."""
        return sum(map(self._numel, self.shapes))

    @property
    def density(self) -> float:
        """Chosen entries as a fraction of all; 0.0 for a mask without tensors."""
        return self.nnz / self.numel if self.numel else 0.0

    @property
    def sha256(self) -> str:
        """SHA-256 of names and positions: equal for masks with the same entries in tensors of the same names."""
        return store.checksum(self._indices)

    def counts(self) -> dict[str, int]:
        """Number of chosen entries per tensor."""
        return {name: index.numel() for name, index in self._indices.items()}

    @plain_torch()
    def dense(self, name: str) -> Tensor:
        """The mask of one tensor as a boolean tensor of that tensor's shape, True where chosen.

        Raises:
            KeyError: the mask does not name this tensor.
        """
        chosen = torch.zeros(self._numel(name), dtype=torch.bool)
        chosen[self[name]] = True
        return chosen.view(self.shapes[name])

    def describe(self) -> dict[str, Any]:
        """κ, scope, number of entries and parents, as a JSON-like dict."""
        return {"kappa": self.kappa, "scope": self.scope, "nnz": self.nnz, "parents": list(self.parents)}

    @plain_torch()
    def __sub__(self, other: SparseMask) -> SparseMask:
        def without(mine: Tensor, theirs: Tensor) -> Tensor:
            return mine[~torch.isin(mine, theirs, assume_unique=True)]

        return self._combine(other, "difference", list(self), without)

    @plain_torch()
    def __and__(self, other: SparseMask) -> SparseMask:
        def shared(mine: Tensor, theirs: Tensor) -> Tensor:
            return mine[torch.isin(mine, theirs, assume_unique=True)]

        return self._combine(other, "intersection", [name for name in self if name in other], shared)

    @plain_torch()
    def __or__(self, other: SparseMask) -> SparseMask:
        def joined(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.cat([mine, theirs]).unique(sorted=True)

        names = [*self, *(name for name in other if name not in self)]
        return self._combine(other, "union", names, joined)

    def _combine(
        self, other: SparseMask, operation: str, names: list[str], merge: Callable[[Tensor, Tensor], Tensor]
    ) -> SparseMask:
        if not isinstance(other, SparseMask):
            return NotImplemented
        shapes = {**other.shapes, **self.shapes}
        if different := [n for n in self if n in other.shapes and other.shapes[n] != self.shapes[n]]:
            first = different[0]
            raise ValueError(
                f"Masks of different models: shapes of {len(different)} shared tensors differ "
                f"({store.some(different)}; {first!r} is {self.shapes[first]} and {other.shapes[first]})."
            )
        none = torch.empty(0, dtype=torch.int64)
        return SparseMask(
            {name: merge(self.get(name, none), other.get(name, none)) for name in names},
            {name: shapes[name] for name in names},
            kappa=self.kappa if self.kappa == other.kappa else None,
            scope=self.scope if self.scope == other.scope else None,
            parents=[{"operation": operation, "left": self.describe(), "right": other.describe()}],
        )

    @plain_torch()
    def random_like(self, seed: int) -> SparseMask:
        """A null mask: in every tensor as many entries as here, drawn uniformly without replacement.

        The draw for a tensor depends on the seed, its name, its size and its count alone. It takes memory in
        proportion to the count, not to the tensor, as long as no more than half of a tensor is chosen.

        Args:
            seed: any integer.

        Returns:
            A mask of the same shapes and counts; chosen entries of this mask may occur in it.
        """
        drawn = {
            name: sample_positions(self._numel(name), k, seed, name) for name, k in self.counts().items()
        }
        parents = [{"operation": "random_like", "seed": seed, "of": self.describe()}]
        return SparseMask(drawn, self.shapes, self.kappa, self.scope, parents)

    @plain_torch()
    def restrict(self, patterns: Patterns) -> SparseMask:
        """The part of the mask that lies in some of its tensors.

        Args:
            patterns: a shell pattern such as "*.q_proj.weight" (case-sensitive), several of them (any may
                match), or a function that says whether to keep a name.

        Returns:
            A mask that names only the tensors that match.

        Raises:
            ValueError: nothing matches.
        """
        if callable(patterns):
            kept = [name for name in self if patterns(name)]
            words = getattr(patterns, "__name__", repr(patterns))
        else:
            globs = [patterns] if isinstance(patterns, str) else list(patterns)
            kept = [name for name in self if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]
            words = ", ".join(globs)
        if not kept:
            raise ValueError(f"No tensor of the mask matches {words!r}. It names {store.some(list(self))}.")
        parents = [{"operation": "restrict", "patterns": words, "of": self.describe()}]
        shapes = {name: self.shapes[name] for name in kept}
        return SparseMask({name: self[name] for name in kept}, shapes, self.kappa, self.scope, parents)

    @plain_torch()
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mask as one safetensors file: the positions, and a header with everything else.

        The file appears under `path` only when it is complete.

        Args:
            path: usually ending in ".safetensors".

        Raises:
            OSError: the file cannot be written; what stood there before is untouched.
        """
        header = {
            "kappa": self.kappa,
            "scope": self.scope,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "parents": list(self.parents),
        }
        store.MASK.write(path, self._indices, header)

    @classmethod
    @plain_torch()
    def load(cls, path: str | os.PathLike[str]) -> SparseMask:
        """Read a mask that `save` wrote, and check it.

        Args:
            path: the safetensors file.

        Returns:
            The mask, equal to the saved one in entries, order of tensors and provenance.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no mask, was written by a newer version, or is damaged.
        """
        indices, header = store.MASK.read(path)
        try:
            return cls(indices, header["shapes"], header["kappa"], header["scope"], header["parents"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{os.fspath(path)} is damaged: {error} Make the mask again.") from error


def _checked(name: str, index: Tensor, numel: int) -> Tensor:
    if index.dtype != torch.int64:
        raise TypeError(f"Positions of {name!r} must be int64, got {index.dtype}.")
    if index.ndim != 1:
        raise ValueError(f"Positions of {name!r} must be a vector, got shape {tuple(index.shape)}.")
    index = index.detach().cpu()
    if not bool((index[1:] > index[:-1]).all()):
        raise ValueError(f"Positions of {name!r} must be strictly rising. Use index.unique().")
    if index.numel() and (int(index[0]) < 0 or int(index[-1]) >= numel):
        raise ValueError(
            f"Positions of {name!r} must lie from 0 to {numel - 1}, got {int(index[0])} to {int(index[-1])}."
        )
    return index
