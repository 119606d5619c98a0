"""One Fisher diagonal of a layer-by-layer run: where it stands, in the journal of its store if it has one."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from tomfisher.fisher.diagonal import FisherDiagonal
from tomfisher.fisher.growing import GrowingStore
from tomfisher.fisher.layer_stage import gradient_key
from tomfisher.fisher.layerwise import LayerwiseRun
from tomfisher.fisher.record import Asked, Outcome
from tomfisher.fisher.run import Run
from tomfisher.fisher.selection import describe_params
from tomfisher.models.opened import OpenedModel
from tomfisher.runtime.rules import Rules

_AFTER = "after the layers"


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

    Attributes:
        data: digest of the samples.
        outcomes: of the layers that are done.
        is_resumed: whether an earlier process did some of it.
        is_turned: whether the gradients that enter the last layer are there.
        up_from: the first layer to go up with.
        down_from: the first layer to go down with.
    """

    def __init__(
        self,
        run: LayerwiseRun,
        out: str | os.PathLike[str] | None,
        asked: Asked,
        opened: OpenedModel,
        data: str,
    ) -> None:
        self.run, self.data = run, data
        self.outcomes: list[Outcome] = []
        self.is_resumed = self.is_turned = False
        self.up_from, self.down_from = 0, len(run.layers.modules) - 1
        self._is_after_done = False
        self._out, self._sums = out, dict[str, Tensor]()
        self._store: GrowingStore | None = None
        if out is None:
            return
        identity = opened.identity()
        facts = {
            "model": {key: identity[key] for key in ("config_sha256", "headers_sha256", "dtype")},
            "data_sha256": data,
            "settings": asdict(asked) | {"params": describe_params(asked.params)},
            "hidden_states": "file" if run.boundaries.is_kept else "memory",
        }
        shapes = {name: tuple(parameter.shape) for name, parameter in run.selection.items()}
        self._store = GrowingStore.begin(Path(out), shapes, facts)
        run.rules = Rules(batches=self._store.facts.get("batches", run.rules.batches))

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._store is not None:
            self._store.close()

    @property
    def num_tokens(self) -> int:
        """Tokens of the samples."""
        return sum(map(len, self.run.samples))

    def restore(self) -> None:
        """Take up what an earlier process left. The run has recorded its forwards, and what is outside is loaded."""
        if self._store is None or not self._store.done:
            return
        facts = self._store.facts
        if facts["digests"] != [call.digest.hex() for call in self.run.calls]:
            raise ValueError(
                "What enters the model's layers is not what it was when this store was begun, though model and data "
                "are the same: another version of PyTorch or transformers? Delete the unfinished store to begin anew."
            )
        self.is_resumed = True
        down = [name for name in self._store.done if name.startswith("down ")]
        self._is_after_done = _AFTER in self._store.done
        self.outcomes = [Outcome(**facts[name]) for name in (_AFTER, *down) if facts.get(name)]
        if down:
            self.down_from = int(down[-1].split()[1]) - 1
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
        """`LayerwiseRun.turn`; where rows stood in one forward that must not, all begins anew."""
        if not self.run.turn(short_loss):
            self.run.boundaries.clear()
            self.run.record()
            self.up_from = 0
            return
        self.is_turned = True
        if self.run.boundaries.is_kept:
            self._commit("turned")
        elif self._store is not None and self.is_resumed:
            for name, gradient in self._store.carried.items():
                call = self.run.calls[int(name)]
                self.run.boundaries[gradient_key(self.down_from + 1, call)] = gradient

    def after(self, advance: Callable[[int], object]) -> None:
        """The squares of what comes after the layers, unless an earlier process had them."""
        if self.run.outer.after and not self._is_after_done:
            self._is_after_done = True
            self._done(_AFTER, self.run.after(advance), {})

    def down_done(self, number: int, done: Run | None) -> None:
        """The squares of a layer are complete; of number -1 those of what comes before the layers."""
        self.down_from = number - 1
        self._done(f"down {number}", done, {} if self.run.boundaries.is_kept else self._gradients(number))

    def _done(self, step: str, done: Run | None, carried: dict[str, Tensor]) -> None:
        outcome = None if done is None else Outcome.of(done)
        self.outcomes += [] if outcome is None else [outcome]
        squares = {} if done is None else done.F
        if self._store is None:
            self._sums.update(squares)
            return
        for name, F in squares.items():
            self._store.write(name, F)
        self._commit(step, carried, **{step: None if outcome is None else asdict(outcome)})

    def finish(self, facts: dict[str, Any], methods: dict[str, str]) -> FisherDiagonal:
        """The result, its store closed with what it says of itself."""
        counts = len(self.run.samples), self.num_tokens
        if self._store is None or self._out is None:
            F = FisherDiagonal({n: self._sums[n] for n in self.run.selection}, *counts, methods, facts)
        else:
            self._store.finish(
                {"num_samples": counts[0], "num_tokens": counts[1], **facts, "methods": methods}
            )
            F = FisherDiagonal.load(self._out, verify=False)
        self.run.boundaries.remove()
        return F

    def _commit(self, step: str, tensors: dict[str, Tensor] | None = None, **facts: Any) -> None:
        if self._store is None:
            return
        self.run.boundaries.sync()
        always: dict[str, Any] = {
            "batches": self.run.rules.batches,
            "digests": [call.digest.hex() for call in self.run.calls],
        }
        if self.run.boundaries.is_kept:
            number = {call: index for index, call in enumerate(self.run.calls)}
            places = self.run.boundaries.places().items()
            always["places"] = [[_named(key, number), place] for key, place in places if _call(key) in number]
            always |= {"up": self.up_from, "turned": self.is_turned}
        self._store.commit(step, tensors or {}, {**always, **facts})

    def _gradients(self, number: int) -> dict[str, Tensor]:
        keys = {str(i): gradient_key(number, call) for i, call in enumerate(self.run.calls)}
        return {name: self.run.boundaries[key] for name, key in keys.items() if key in self.run.boundaries}

    def _key(self, kind: str, layer: int, call: int) -> Hashable:
        recorded = self.run.calls[call]
        return gradient_key(layer, recorded) if kind == "gradient" else (layer, recorded)


def _call(key: Any) -> Any:
    return key[-1]


def _named(key: Any, number: dict[Any, int]) -> list[Any]:
    """A key of the boundaries as JSON holds it."""
    kind, layer = ("hidden", key[0]) if len(key) == 2 else key[:2]
    return [kind, layer, number[_call(key)]]
