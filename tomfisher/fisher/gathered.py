"""A Fisher diagonal that is split over ranks, put together tensor by tensor for whoever needs it whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from tomfisher.fisher.store import OnDisk
from tomfisher.runtime import ranks
from tomfisher.runtime.parts import whole
from tomfisher.runtime.ranks import Team
from tomfisher.runtime.sharded import is_sharded

_TURN = "the tensor that is put together"


class Gathered(OnDisk):
    """Whole tensors of which each rank holds a part, put together when rank 0 asks for one, while the others `serve`.

    Args:
        tensors: name to DTensor, or to a tensor that every rank holds whole.
        team: the ranks.
    """

    def __init__(self, tensors: Mapping[str, Tensor], team: Team) -> None:
        self._tensors, self._team = tensors, team

    def __getitem__(self, name: str) -> Tensor:
        self._team.exchange(_TURN, name)
        return whole(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every whole tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def serve(self) -> None:
        """Take part in putting together what rank 0 asks for, until it is done."""
        while (name := self._team.exchange(_TURN)[0]) is not None:
            whole(self._tensors[name])

    def done(self) -> None:
        """Let the others go on, on rank 0."""
        self._team.exchange(_TURN)


def is_split(tensors: Mapping[str, Tensor]) -> bool:
    """Whether some of these tensors are split over ranks."""
    return not isinstance(tensors, OnDisk) and any(map(is_sharded, tensors.values()))


def by_first_rank(tensors: Mapping[str, Tensor], save: Callable[[Mapping[str, Tensor]], None]) -> None:
    """Have rank 0 save tensors that are split over ranks, while the others hand it their parts.

    Args:
        tensors: of which `is_split`.
        save: what rank 0 does with all of them, in their order.

    Raises:
        RankError: on the other ranks, where it fails.
    """
    team = ranks.current()
    with team.call("saving"), team.exchanging():
        gathered = Gathered(tensors, team)
        if not team.is_first:
            gathered.serve()
            return
        try:
            save(gathered)
        finally:
            gathered.done()
