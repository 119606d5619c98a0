"""The two Fisher diagonals of a study: taken once, kept in the run folder, opened from there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomfisher.results.folder import RunFolder
from tomfisher.runtime import ranks
from tomfisher.runtime.device import device_of
from tomfisher.runtime.gate import check_samples
from tomfisher.runtime.memory import token_budget
from tomfisher.runtime.rules import check_run, way_of
from tomfisher.studies.config import Config
from tomfisher.studies.inputs import Inputs
from tomfisher.studies.parsing import parse_params
from tomfisher.studies.stores import check_pair, open_own, open_store

if TYPE_CHECKING:
    from tomfisher.fisher import FisherDiagonal
    from tomfisher.models.load import LoadedModel
    from tomfisher.sample import Sample


class Diagonals:
    """Gives the Fisher diagonals of task and control.

    Args:
        config: the study.
        inputs: its texts.
        folder: its run folder.
        model: loads the model in the dtype of the Fisher diagonals.
        say: told of every step.
        progress: show bars on a terminal.
    """

    def __init__(
        self,
        config: Config,
        inputs: Inputs,
        folder: RunFolder,
        model: Callable[[], LoadedModel],
        say: Callable[[str], None],
        progress: bool,
    ) -> None:
        self.config, self.inputs, self.folder = config, inputs, folder
        self._model, self._say, self._progress = model, say, progress
        self._stores: dict[str, FisherDiagonal] = {}
        self._samples: dict[str, list[Sample]] = {}

    @property
    def _given(self) -> dict[str, str | None]:
        return {"task": self.config.task_store, "control": self.config.control_store}

    def paths(self) -> dict[str, Path]:
        """Where the stores lie, or will lie."""
        return {
            which: Path(path).expanduser() if path else self.folder.store_path(which)
            for which, path in self._given.items()
        }

    def __call__(self) -> dict[str, FisherDiagonal]:
        """The diagonals "task" and "control", from the config's stores or the run folder's; computed where missing."""
        if self._stores:
            return self._stores
        self._encode_samples()
        if self.config.is_streamed and self._samples:
            self._stream()
        diagonals = {
            which: open_store(self.paths()[which])
            if given is not None
            else open_own(self.folder.store_path(which), partial(self._compute, which))
            for which, given in self._given.items()
        }
        check_pair(diagonals["task"], diagonals["control"])
        self._stores = diagonals
        self.folder.pin(fisher={which: _said(F) for which, F in diagonals.items()})
        return self._stores

    def _encode_samples(self) -> None:
        """Make the samples of every Fisher diagonal that is still to be taken, before the first of them is.

        The model is asked about both sets at once, also where one of them is done: what it says is then the same.
        """
        own = [which for which, given in self._given.items() if not given]
        if ranks.current().first(
            "a look at the stores", lambda: all(self.folder.store_path(w).exists() for w in own)
        ):
            return
        loaded = self._model()
        for which in own:
            self._samples[which] = self.inputs.samples(which, loaded)
            check_samples(loaded.model, self._samples[which])
        if loaded.opened is not None:  # asked in the same reading as the Fisher diagonal is taken
            return
        self._say("asking the model about the rules that its numbers rest on")
        texts = (sample.input_ids for samples in self._samples.values() for sample in samples)
        budget = token_budget(self.config.tokens_per_batch, loaded.model, device_of(loaded.model))
        check_run(loaded.model, texts, tokens=budget)

    def _stream(self) -> None:
        """The stores that are not there yet, from one pair of readings of the weights."""
        from tomfisher.fisher.record import Asked
        from tomfisher.fisher.streamed import SampleSet, stream_diagonals

        config = self.config
        loaded = self._model()
        hashes = self.inputs.hashes()
        sets = {
            which: SampleSet(samples, self.folder.store_path(which), {"texts_sha256": hashes[which]})
            for which, samples in self._samples.items()
            if not self.folder.store_path(which).exists()
        }
        counted = " and ".join(f"{len(s.samples)} {w} samples" for w, s in sets.items())
        self._say(f"Fisher diagonal of {counted}")
        asked = Asked(
            parse_params(config.params),
            config.labels,
            config.reduction,
            config.tokens_per_batch,
            "auto",
            config.seed,
            "ieee",
        )
        stream_diagonals(loaded.opened, list(sets.values()), asked, config.boundary, self._progress)
        self._samples.clear()

    def _compute(self, which: str) -> FisherDiagonal:
        from tomfisher.fisher import fisher_diagonal

        config = self.config
        loaded = self._model()
        samples = self._samples.pop(which)
        self._say(f"Fisher diagonal of {len(samples)} {which} samples")
        F = fisher_diagonal(
            loaded.model,
            samples,
            params=parse_params(config.params),
            labels=config.labels,
            reduction=config.reduction,
            tokens_per_batch=config.tokens_per_batch,
            progress=self._progress,
            seed=config.seed,
        )
        F.metadata.update(model=loaded.identity_now(), texts_sha256=self.inputs.hashes()[which])
        return F


def _said(F: FisherDiagonal) -> dict[str, Any]:
    """What a result records about a Fisher diagonal."""
    methods = Counter(method.partition(":")[0] for method in F.methods.values())
    return {
        "definition": dict(F.definition),
        "num_samples": F.num_samples,
        "num_tokens": F.num_tokens,
        "methods": dict(methods),
        "implementations": F.implementations,
        "data_sha256": F.metadata.get("data_sha256"),
        "rules": way_of(F.metadata.get("rules")),
    }
