"""Where a layer-by-layer run stands, in the journal of its store, so that the same call goes on from there."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from tomfisher.fisher.growing import GrowingStore
from tomfisher.fisher.layer_stage import gradient_key
from tomfisher.fisher.layerwise import LayerwiseRun
from tomfisher.fisher.record import Asked, Outcome
from tomfisher.fisher.selection import describe_params
from tomfisher.models.opened import OpenedModel
from tomfisher.runtime.boundaries import Boundaries
from tomfisher.runtime.rules import Rules


class Resumed:
    """The steps of a run and what each left: in a store's journal, or nowhere for a result in memory.

    With hidden states in a file that outlives the process, at most one layer is done again. With those in memory the
    way up is done again, and the way down goes on with the gradients that the last step left.

    Args:
        run: whose steps they are.
        boundaries: its hidden states.
        out: the store; None for none.
        asked: the settings.
        opened: the model.
        data: digest of the samples.

    Attributes:
        outcomes: of the layers that are done.
        steps_done: layers done by an earlier process, up and down.
        up_from: the first layer to go up with.
        down_from: the first layer to go down with; None for the last.
    """

    def __init__(
        self,
        run: LayerwiseRun,
        boundaries: Boundaries,
        out: str | os.PathLike[str] | None,
        asked: Asked,
        opened: OpenedModel,
        data: str,
    ) -> None:
        self._run, self._boundaries = run, boundaries
        self.outcomes: list[Outcome] = []
        self.steps_done = self.up_from = 0
        self.down_from: int | None = None
        self._head = False
        self._store: GrowingStore | None = None
        if out is None:
            return
        identity = opened.identity()
        facts = {
            "model": {key: identity[key] for key in ("config_sha256", "headers_sha256", "dtype")},
            "data_sha256": data,
            "settings": asdict(asked) | {"params": describe_params(asked.params)},
            "hidden_states": "file" if boundaries.is_kept else "memory",
        }
        shapes = {name: tuple(parameter.shape) for name, parameter in run.selection.items()}
        self._store = GrowingStore.begin(Path(out), shapes, facts)
        run.rules = Rules(batches=self._store.facts.get("batches", run.rules.batches))

    def __enter__(self) -> Resumed:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._store is not None:
            self._store.close()

    @property
    def is_going_up(self) -> bool:
        """Whether the gradients that enter the last layer are still to be had."""
        return not self._head

    def restore(self) -> None:
        """Take up what an earlier process left. The run has recorded its forwards, and what is outside is loaded."""
        if self._store is None or not self._store.done:
            return
        facts = self._store.facts
        if facts["digests"] != [call.digest.hex() for call in self._run.calls]:
            raise ValueError(
                "What enters the model's layers is not what it was when this store was begun, though model and data "
                "are the same: another version of PyTorch or transformers? Delete the unfinished store to begin anew."
            )
        down = [name for name in self._store.done if name.startswith("down ")]
        self.outcomes = [Outcome(**facts[name]) for name in down if facts[name]]
        if down:
            self.down_from = int(down[-1].split()[1]) - 1
        if self._boundaries.is_kept:
            self._boundaries.adopt({self._key(*key): tuple(place) for key, place in facts["places"]})
            self.up_from = facts["up"]
            self._head = facts["head"]
            if self._head:
                self._run.ask()
        self.steps_done = self.up_from + len(down)

    def up_done(self, number: int) -> None:
        """All forwards are through a layer."""
        if self._boundaries.is_kept:
            self._commit(f"{self._run.rules.batches}: up {number}", up=number + 1)

    def begin_again(self) -> None:
        """The forwards were recorded anew: no layer is done."""
        self.up_from = 0

    def head_done(self) -> None:
        """The gradients that enter the last layer are there."""
        if self._head:
            return
        self._head = True
        if self._boundaries.is_kept:
            self._commit("head", head=True)
        elif self.down_from is not None and self._store is not None:
            for name, gradient in self._store.carried.items():
                self._boundaries[gradient_key(self.down_from + 1, self._run.calls[int(name)])] = gradient

    def down_done(self, number: int, squares: dict[str, Tensor], outcome: Outcome | None) -> None:
        """The squares of a layer are complete."""
        if self._store is None:
            return
        for name, F in squares.items():
            self._store.write(name, F)
        kept = {} if self._boundaries.is_kept else self._gradients(number)
        step = f"down {number}"
        self._commit(step, kept, **{step: None if outcome is None else asdict(outcome)})

    def finish(self, facts: dict[str, Any]) -> None:
        """Close the store with what its record says."""
        assert self._store is not None
        self._store.finish(facts)

    def _commit(self, step: str, tensors: dict[str, Tensor] | None = None, **facts: Any) -> None:
        if self._store is None:
            return
        self._boundaries.sync()
        always: dict[str, Any] = {
            "batches": self._run.rules.batches,
            "digests": [call.digest.hex() for call in self._run.calls],
        }
        if self._boundaries.is_kept:
            number = {call: index for index, call in enumerate(self._run.calls)}
            places = self._boundaries.places().items()
            always["places"] = [[_named(key, number), place] for key, place in places if _call(key) in number]
            always.setdefault("up", self._store.facts.get("up", 0))
            always.setdefault("head", self._store.facts.get("head", False))
        self._store.commit(step, tensors or {}, {**always, **facts})

    def _gradients(self, number: int) -> dict[str, Tensor]:
        keys = {str(i): gradient_key(number, call) for i, call in enumerate(self._run.calls)}
        return {name: self._boundaries[key] for name, key in keys.items() if key in self._boundaries}

    def _key(self, kind: str, layer: int, call: int) -> Hashable:
        recorded = self._run.calls[call]
        return gradient_key(layer, recorded) if kind == "gradient" else (layer, recorded)


def _call(key: Any) -> Any:
    return key[-1]


def _named(key: Any, number: dict[Any, int]) -> list[Any]:
    """A key of the boundaries as JSON holds it."""
    kind, layer = ("hidden", key[0]) if len(key) == 2 else key[:2]
    return [kind, layer, number[_call(key)]]
