"""One Fisher diagonal of a layer-by-layer run: where it stands, in the journal of its store if it has one.

Of several ranks each writes its rows of a layer's sums into one store, whose journal the first one keeps; each other
one has a journal beside it. Layers go down in step: the others have written their rows, and kept what the next layer
needs, before the first one commits the layer, and begin with the next layer afterwards. So a rank is never behind the
store and at most one layer ahead of it, which it then does again. Ranks that gather their layers from each other go up
in step as well: they go on from the first layer that one of them has not done.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from tomfisher.fisher.diagonal import FisherDiagonal
from tomfisher.fisher.growing import GrowingStore
from tomfisher.fisher.journal import unfinished_of
from tomfisher.fisher.layer_stage import gradient_key
from tomfisher.fisher.layerwise import LayerwiseRun
from tomfisher.fisher.record import Asked, Outcome
from tomfisher.fisher.rows import SharedStore, add_up_rows, placed_as
from tomfisher.fisher.run import Run
from tomfisher.fisher.selection import describe_params
from tomfisher.fisher.together import add_up
from tomfisher.models.opened import OpenedModel
from tomfisher.models.sharded import ShardedModel
from tomfisher.runtime.ranks import Team
from tomfisher.runtime.rules import Rules

_KNOWN_BY = ("config_sha256", "headers_sha256", "shards_sha256", "dtype")  # of a model's identity


class Part:
    """A run, its sums, and its steps as the journal of a store has them, so that the same call goes on from there.

    With hidden states in a file that outlives the process, at most one layer is done again. With those in memory the
    way up is done again, and the way down goes on with the gradients that the last step left.

    Args:
        run: the way of the samples through the layers.
        out: the store; None for a result in memory.
        asked: the settings.
        opened: the model.
        data: digest of the samples.
        team: the ranks, each of which has a part for its samples.

    Attributes:
        data: digest of the samples.
        is_resumed: whether an earlier process did some of it.
        is_turned: whether the gradients that enter the last layer are there.
        up_from: the first layer to go up with.
        down_from: the first layer to go down with; the number of layers stands for what comes after them, and -1 for
            what comes before.
    """

    def __init__(
        self,
        run: LayerwiseRun,
        out: str | os.PathLike[str] | None,
        asked: Asked,
        opened: OpenedModel | ShardedModel,
        data: str,
        team: Team,
    ) -> None:
        self.run, self.data = run, data
        self._team = team
        self._outcomes: dict[int, Outcome] = {}  # by layer
        self.is_resumed = self.is_turned = False
        self.up_from, self._top = 0, len(run.layers.modules) - (0 if run.outer.after else 1)
        self.down_from = self._top
        self._out, self._sums = out, dict[str, Tensor]()
        self._shards = opened.shards if isinstance(opened, ShardedModel) else None
        self._shapes = {name: tuple(parameter.shape) for name, parameter in run.selection.items()}
        self._store: GrowingStore | None = None
        if out is None:
            return
        identity = opened.identity()
        facts = {
            "model": {key: identity[key] for key in _KNOWN_BY if key in identity},
            "data_sha256": data,
            "settings": asdict(asked) | {"params": describe_params(asked.params)},
            "hidden_states": "file" if run.boundaries.is_kept else "memory",
            "ranks": team.size,
        }
        path = Path(os.path.realpath(out))
        self._store = _begun(path, self._shapes, facts, team)
        self._shared = SharedStore(team, path, self._shapes, self._store if team.is_first else None)
        run.rules = Rules(batches=self._store.facts.get("batches", run.rules.batches))

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._store is not None:
            self._store.close()

    @property
    def num_tokens(self) -> int:
        """Tokens of the samples that go through here."""
        return sum(len(self.run.samples[i]) for i in self.run.own)

    @property
    def outcomes(self) -> list[Outcome]:
        """What the layers that are done found out, from the last layer on."""
        return list(self._outcomes.values())

    def restore(self) -> None:
        """Take up what an earlier process left. The run has recorded its forwards, and what is outside is loaded."""
        if self._store is None:
            return
        if self._store.done:
            self._take_up(self._store)
        written, *_ = self._team.exchange("the layers that are done", self.down_from)
        if self.down_from not in (written, written - 1):
            raise ValueError(
                f"Rank {self._team.rank} does not have what it kept of layer {written + 1}, from which {self._out} "
                f"goes on. Delete {unfinished_of(self._out or '')} to begin anew."
            )
        self.down_from = written
        self._outcomes = {layer: outcome for layer, outcome in self._outcomes.items() if layer > written}
        if self._shards is not None:
            stand = self._team.exchange("the way up", [self.up_from, self.is_turned])
            self.up_from = min(up_from for up_from, _ in stand)
            self.is_turned = all(is_turned for _, is_turned in stand)
        if self.run.boundaries.is_kept and written < self._top:
            self.run.forget(written + 1)

    def _take_up(self, store: GrowingStore) -> None:
        facts = store.facts
        if facts["digests"] != [call.digest.hex() for call in self.run.calls]:
            raise ValueError(
                "What enters the model's layers is not what it was when this store was begun, though model and data "
                "are the same: another version of PyTorch or transformers? Delete the unfinished store to begin anew."
            )
        self.is_resumed = True
        down = {int(name.split()[1].rstrip(",")): name for name in store.done if name.startswith("down ")}
        self._outcomes = {layer: Outcome(**facts[name]) for layer, name in down.items() if facts.get(name)}
        self.down_from = min([*down, self._top + 1]) - 1
        if self.run.boundaries.is_kept:
            self.run.boundaries.adopt({self._key(*key): tuple(place) for key, place in facts["places"]})
            self.up_from, self.is_turned = facts["up"], facts["turned"]
            if self.is_turned:
                self.run.ask()

    def up_done(self, number: int) -> None:
        """All forwards are through a layer."""
        if self.run.boundaries.is_kept and number >= self.up_from:
            self.up_from = number + 1
            self._commit(f"{self.run.rules.batches}: up {number}")

    def turn(self, short_loss: float | None) -> None:
        """`LayerwiseRun.turn`; where rows stood in one forward that must not, all begins anew.

        Ranks that gather their layers from each other do so together.
        """
        is_turned = self.run.turn(short_loss)
        if self._shards is not None:
            is_turned = all(self._team.exchange("the turn", is_turned))
        if not is_turned:
            self.run.boundaries.clear()
            self.run.record()
            self.up_from = 0
            return
        self.is_turned = True
        if self.run.boundaries.is_kept:
            self._commit("turned")
        elif self._store is not None and self.is_resumed:
            for name, gradient in self._store.carried.items():
                layer, call = map(int, name.split())
                if layer == self.down_from + 1:
                    self.run.boundaries[gradient_key(layer, self.run.calls[call])] = gradient

    def down_done(self, number: int, done: Run | None) -> None:
        """The squares of a layer are complete, once those of all ranks are added.

        Args:
            number: of the layer, as `down_from` was.
            done: its run; None where nothing of it is selected.
        """
        self.down_from = number - 1
        if done is not None:
            self._outcomes[number] = Outcome.of(done)
        squares = (
            {} if done is None else {name: done.F[name] for name in self.run.selection if name in done.F}
        )
        if self._store is None and self._shards is None:
            add_up(self._team, squares)
            self._sums.update(squares)
            self.run.forget(number)
            return
        rows = add_up_rows(self._team, squares)
        if self._store is None:
            self._sums.update(rows)
        elif self._team.is_first:
            self._team.exchange(f"layer {number}, kept")
            self._shared.write(rows)
            self._commit_down(number, self._gradients(number))
            self._team.exchange(f"layer {number}, written")
        else:
            self._shared.write(rows)
            self._commit_down(number, {**self._gradients(number), **self._gradients(number + 1)})
            self._team.exchange(f"layer {number}, kept")
            self._team.exchange(f"layer {number}, written")
        self.run.forget(number)

    def _commit_down(self, number: int, gradients: Mapping[str, Tensor]) -> None:
        assert self._store is not None
        self._commit(
            f"down {number}", {} if self.run.boundaries.is_kept else gradients, self._outcomes.get(number)
        )

    def finish(self, facts: dict[str, Any], methods: dict[str, str]) -> FisherDiagonal:
        """The result, its store closed with what it says of itself."""
        counts = len(self.run.samples), sum(map(len, self.run.samples))
        if self._store is None or self._out is None:
            sums = {n: self._sums[n] for n in self.run.selection}
            if self._shards is not None:
                sums = placed_as(self._team, self._shards, sums, self._shapes)
            F = FisherDiagonal(sums, *counts, methods, facts)
        else:
            digests = self._shared.digests()
            if self._team.is_first:
                self._store.finish(
                    {"num_samples": counts[0], "num_tokens": counts[1], **facts, "methods": methods}, digests
                )
            self._team.exchange("the finished store")
            if not self._team.is_first:
                self._store.abandon()
            F = FisherDiagonal.load(self._out, verify=False)
        self.run.boundaries.remove()
        return F

    def _commit(
        self, step: str, tensors: Mapping[str, Tensor] | None = None, outcome: Outcome | None = None
    ) -> None:
        if self._store is None:
            return
        if step in self._store.done:  # before another rank had done it, so that it was done again
            step += f", after {len(self._store.done)} steps"
        self.run.boundaries.sync()
        facts: dict[str, Any] = {
            "batches": self.run.rules.batches,
            "digests": [call.digest.hex() for call in self.run.calls],
        }
        if self.run.boundaries.is_kept:
            number = {call: index for index, call in enumerate(self.run.calls)}
            places = self.run.boundaries.places().items()
            facts["places"] = [[_named(key, number), place] for key, place in places if _call(key) in number]
            facts |= {"up": self.up_from, "turned": self.is_turned}
        if outcome is not None:
            facts[step] = asdict(outcome)
        self._store.commit(step, tensors or {}, facts)

    def _gradients(self, number: int) -> dict[str, Tensor]:
        keys = {f"{number} {i}": gradient_key(number, call) for i, call in enumerate(self.run.calls)}
        return {name: self.run.boundaries[key] for name, key in keys.items() if key in self.run.boundaries}

    def _key(self, kind: str, layer: int, call: int) -> Hashable:
        recorded = self.run.calls[call]
        return gradient_key(layer, recorded) if kind == "gradient" else (layer, recorded)


def _begun(
    path: Path, shapes: Mapping[str, tuple[int, ...]], run: Mapping[str, Any], team: Team
) -> GrowingStore:
    """The store at `path`; on the other ranks one without tensors beside it, for its journal."""
    if team.is_first:
        store = GrowingStore.begin(path, shapes, run)
        team.exchange("the unfinished store", not store.done)
        return store
    is_new, *_ = team.exchange("the unfinished store")
    if not unfinished_of(path).is_dir():
        raise ValueError(
            f"Rank {team.rank} does not see what rank 0 writes to {unfinished_of(path)}. Several hosts need a file "
            "system that they share: give a path on it."
        )
    own = path.with_name(f"{path.name}.rank-{team.rank}")
    return GrowingStore.begin(own, {}, run, anew=is_new)


def _call(key: Any) -> Any:
    return key[-1]


def _named(key: Any, number: dict[Any, int]) -> list[Any]:
    """A key of the boundaries as JSON holds it."""
    kind, layer = ("hidden", key[0]) if len(key) == 2 else key[:2]
    return [kind, layer, number[_call(key)]]
