"""`FisherDiagonal`: the result of a run, a read-only mapping from parameter name to float32 tensor."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from tomfisher.fisher.gathered import by_first_rank, is_split
from tomfisher.fisher.store import OnDisk, check_target, read_store, write_store
from tomfisher.ops import Span
from tomfisher.runtime.ranks import Team
from tomfisher.runtime.torch_state import plain_torch


class FisherDiagonal(Mapping[str, Tensor]):
    """Sums of per-sample squared gradients, with what is needed to add, average and trust them.

    `F[name]` is float32 with the parameter's shape; sums over samples, so that two runs add up exactly. Of a model
    whose weights are split over ranks it is a DTensor, split as the parameter is.

    Args:
        tensors: parameter name to tensor; may read lazily from disk.
        num_samples: samples summed.
        num_tokens: tokens of those samples.
        methods: parameter name to "captured" or "fallback: reason".
        metadata: definition, model, data, versions, implementations: plain JSON values.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        num_samples: int,
        num_tokens: int,
        methods: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._tensors = tensors
        self.num_samples = num_samples
        self.num_tokens = num_tokens
        self.methods = dict(methods or {})
        self.metadata = dict(metadata or {})

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return (
            f"FisherDiagonal({len(self)} tensors, {self.num_samples} samples, {self.num_tokens} tokens, "
            f"{self.definition.get('labels', 'unknown')} labels)"
        )

    def span(self, name: str) -> Span | None:
        """Where the tensor's bytes lie in a file; None for a tensor in memory.

        Args:
            name: a key.

        Raises:
            KeyError: no such tensor.
            ValueError: the file's header is damaged.
        """
        find = getattr(self._tensors, "span", None)
        return None if find is None else find(name)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor; nothing is read of those on the disk."""
        if isinstance(self._tensors, OnDisk):
            return self._tensors.shapes
        return {name: tuple(self[name].shape) for name in self}

    @property
    def roads(self) -> dict[str, str]:
        """Old name of `methods`."""
        warnings.warn("FisherDiagonal.roads is called methods now.", FutureWarning, stacklevel=2)
        return self.methods

    def of(self, tensors: Mapping[str, Tensor]) -> FisherDiagonal:
        """The same facts about the same tensors, held in another way."""
        return FisherDiagonal(tensors, self.num_samples, self.num_tokens, self.methods, self.metadata)

    @property
    def definition(self) -> dict[str, Any]:
        """Formula, loss, labels, reduction and seed of this Fisher."""
        return dict(self.metadata.get("definition", {}))

    @property
    def implementations(self) -> dict[str, str]:
        """Which implementation of each op ran, per device type."""
        return dict(self.metadata.get("implementations", {}))

    @plain_torch()
    def mean(self) -> dict[str, Tensor]:
        """Average over samples: `F / num_samples`, new float32 tensors."""
        return {name: self[name] / self.num_samples for name in self}

    @plain_torch()
    def __add__(self, other: FisherDiagonal) -> FisherDiagonal:
        """Sum of two runs over disjoint samples of one model.

        Of two stores opened from disk the sum stays there too: each tensor is added when it is asked for, so that
        `(F_a + F_b).save(path)` takes memory for one shard.

        Raises:
            ValueError: names, shapes or definitions differ.
        """
        if not isinstance(other, FisherDiagonal):
            return NotImplemented
        if list(self) != list(other) or self.shapes != other.shapes:
            odd = sorted(set(self) ^ set(other)) or [n for n in self if self.shapes[n] != other.shapes[n]]
            raise ValueError(
                f"These Fisher diagonals cover different parameters; the first that differ: {odd[:4]}. "
                "Add runs of one model with one `params`."
            )
        if self.definition != other.definition:
            keys = [k for k in self.definition if self.definition.get(k) != other.definition.get(k)]
            raise ValueError(
                f"These Fisher diagonals are defined differently in {keys}: {self.definition} and "
                f"{other.definition}. Their sum would mean nothing."
            )
        stored = isinstance(self._tensors, OnDisk) and isinstance(other._tensors, OnDisk)
        summed = _Sum(self, other) if stored else {name: self[name] + other[name] for name in self}
        implementations = {**self.implementations, **other.implementations}
        data = [self.metadata.get("data_sha256"), other.metadata.get("data_sha256")]
        return FisherDiagonal(
            summed,
            self.num_samples + other.num_samples,
            self.num_tokens + other.num_tokens,
            {**self.methods, **other.methods},
            {**self.metadata, "implementations": implementations, "data_sha256": data},
        )

    @plain_torch()
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Fisher store: safetensors shards, `model.safetensors.index.json` and `fisher.json`.

        Where tensors are split over ranks, all ranks make this call; rank 0 writes them whole.

        Args:
            path: folder to create; written under a temporary name and renamed.

        Raises:
            FileExistsError: something that is not a Fisher store stands at `path`.
        """
        facts = {
            "num_samples": self.num_samples,
            "num_tokens": self.num_tokens,
            **self.metadata,
            "methods": self.methods,
        }
        if is_split(self._tensors):
            by_first_rank(self._tensors, lambda whole: write_store(whole, facts, path, self.shapes))
        else:
            write_store(self, facts, path, self.shapes)

    @classmethod
    @plain_torch()
    def load(cls, path: str | os.PathLike[str], verify: bool = True) -> FisherDiagonal:
        """Open a Fisher store; tensors are memory-mapped and read when asked for.

        Args:
            path: the folder.
            verify: compare every shard with its recorded SHA-256 first (reads the whole store once).

        Raises:
            FileNotFoundError: no store there.
            ValueError: the store is incomplete, altered or of an unknown format.
        """
        tensors, facts = read_store(path, verify)
        return cls(
            tensors, facts.pop("num_samples"), facts.pop("num_tokens"), facts.pop("methods"), metadata=facts
        )


class _Sum(OnDisk):
    """The sum of two stores, added tensor by tensor when asked for."""

    def __init__(self, left: FisherDiagonal, right: FisherDiagonal) -> None:
        self._left = left
        self._right = right

    @plain_torch()
    def __getitem__(self, name: str) -> Tensor:
        return self._left[name] + self._right[name]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return self._left.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._left)

    def __len__(self) -> int:
        return len(self._left)


def save_by_ranks(fisher: FisherDiagonal, path: str | os.PathLike[str], team: Team) -> None:
    """`save_finished` by rank 0, of a diagonal that all ranks hold, each the whole of it or a part.

    Raises:
        OSError: as for `save_finished`.
    """
    if is_split(fisher._tensors):
        by_first_rank(fisher._tensors, lambda whole: save_finished(fisher.of(whole), path))
    else:
        team.first("writing the store", partial(save_finished, fisher, path))


def save_finished(fisher: FisherDiagonal, path: str | os.PathLike[str]) -> None:
    """`FisherDiagonal.save` for one that nobody else holds: where `path` is taken by now, it goes beside it.

    Raises:
        OSError: of `check_target`, with the name under which the store is written instead.
    """
    try:
        check_target(path)
    except OSError as error:
        spare = Path(path).with_name(f"fisher-{uuid.uuid4().hex[:8]}")
        fisher.save(spare)
        raise type(error)(f"{error} The finished Fisher is kept in {spare}.") from error
    fisher.save(path)
