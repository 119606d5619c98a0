"""The Fisher diagonal layer by layer: each layer is there for all batches, once on the way up and once on the way down.

Up: every layer takes all batches forward, and what enters it is kept. The head then makes losses of them, and the
gradients that enter the last layer. Down: every layer, from the last to the first, takes all batches forward again
and back, as a stage of its own (`LayerStage`). Its parameters are probed, captured or left to autograd as those of a
resident model are, and its F is complete when it leaves. What the rules and the probe ask goes along with the batches,
so that all of it takes two readings of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tomfisher import ops
from tomfisher.fisher.capture import capturable
from tomfisher.fisher.layer_stage import LayerStage, gradient_key
from tomfisher.fisher.outer_stages import AfterLayers, BeforeLayers, Outer
from tomfisher.fisher.probe import choose_methods, long_batches, probe_samples, short_batches
from tomfisher.fisher.recordings import Recorded, Recordings
from tomfisher.fisher.run import Run
from tomfisher.fisher.stage import Stage, WholeModel
from tomfisher.runtime.batches import Batch, collate
from tomfisher.runtime.boundaries import Boundaries
from tomfisher.runtime.layer_calls import Call, UnsupportedLayers
from tomfisher.runtime.layerwise import Layers
from tomfisher.runtime.modes import frozen
from tomfisher.runtime.rules import EQUAL, PADDED, Rules, check_rules
from tomfisher.sample import Sample


class _NotRecorded(Exception):
    """A question about batches that were not recorded, since padded ones were expected to be right."""


def _refuse_batches(call: Call) -> None:
    if call.shape[0] > 1:
        raise _NotRecorded


class LayerwiseRun:
    """One set of samples on its way through layers that come and go.

    `record`, then `Layers.forward` of the `calls`, then `turn` and `after`, then `down` layer by layer, then `before`.
    For all but `down` the parameters outside the layers have their values; for `before` those that `outer` names.

    Args:
        layers: of the model, which have learnt how it hands hidden states on.
        boundaries: where the hidden states are kept.
        selection: parameters by name.
        samples: of the Fisher diagonal, which the rules and the probe are asked with.
        stage: how losses are made of logits.
        budget: `B * T` of a batch.
        impl: of the ops.
        precision: of their float32 products.
        outer: the selected parameters outside of the layers.
        own: indices of the samples that go through; None for all.

    Attributes:
        outer: the same.
        rules: what the model was found to do, after `turn`; before it what is assumed of it.
    """

    def __init__(
        self,
        layers: Layers,
        boundaries: Boundaries,
        selection: Mapping[str, nn.Parameter],
        samples: list[Sample],
        stage: WholeModel,
        budget: int,
        impl: ops.Impl,
        precision: ops.Precision,
        outer: Outer | None = None,
        own: Sequence[int] | None = None,
    ) -> None:
        self.outer = outer or Outer()
        self.layers, self.boundaries, self.samples, self.budget = layers, boundaries, samples, budget
        self.own = list(range(len(samples)) if own is None else own)
        self.selection = dict(selection)
        self.rules = Rules()
        self._model = layers.model
        self._stage, self._impl, self._precision = stage, impl, precision
        self._own = [{n: self.selection[n] for n in names if n in selection} for names in layers.parameters]
        self._asked: list[Call] = []
        self._run: list[Recorded] = []
        self._probes: list[Recorded] = []
        self._recordings = Recordings([], [])
        self._short_loss = math.nan

    @property
    def calls(self) -> list[Call]:
        """All that was recorded, in order."""
        return [*self._asked, *(recorded.call for recorded in (*self._run, *self._probes))]

    @property
    def lowest(self) -> int:
        """The first layer that a gradient is needed of; how many layers there are, where it is none."""
        if self.outer.before:
            return 0
        return next((number for number, own in enumerate(self._own) if own), len(self._own))

    def record(self) -> None:
        """The forwards of the rules, the run and the probe, through layers that hand their input on as it is."""
        with self.layers.recording(self.boundaries) as self._asked:
            self._ask()
        with (
            self.layers.recording(self.boundaries) as calls,
            torch.no_grad(),
            frozen(self._model),
        ):
            self._run = [self._recorded(batch, self._stage, calls) for batch in self._batches()]
            probing = self._stage.probing()
            self._probes = [self._recorded(batch, probing, calls) for batch in self._probe_batches()]
        self._recordings = Recordings(self._run, self._probes)

    def short_loss(self) -> float:
        """The loss of the probe's first sample, in an ordinary forward of the model."""
        with torch.no_grad(), frozen(self._model):
            return float(self._stage.probing().forward(self._probes[0].batch))

    def turn(self, short_loss: float | None = None) -> bool:
        """What the rules say, and the gradients that enter the last layer.

        Args:
            short_loss: what `short_loss` said, to be compared; None where it was before.

        Returns:
            False where rows stood in one forward that must not, as `rules` now says: record again and begin anew.

        Raises:
            UnsupportedLayers: layer by layer the model gives another loss.
        """
        assumed = self.rules
        try:
            self.ask()
        except _NotRecorded:
            self.rules = Rules(batches=EQUAL)
        if self.rules.batches != assumed.batches:
            return False
        self._head()
        if short_loss is not None and not abs(short_loss - self._short_loss) <= self.rules.tolerance:
            raise UnsupportedLayers(
                f"the loss of a short sample is {self._short_loss:.6g} layer by layer and {short_loss:.6g} in one "
                "forward: something else passes between the layers. Load the model whole (load_model)."
            )
        return True

    def ask(self) -> None:
        """What the rules say, from what has come out of the last layer."""
        with self.layers.answering(self._asked, missing=_refuse_batches):
            self.rules = self._ask()

    def after(self, advance: Callable[[int], object]) -> Run | None:
        """The squares of what comes after the layers; see `down`."""
        stage = AfterLayers(self.layers, self._recordings, self._stage)
        return self._squares(stage, self.outer.after, advance) if self.outer.after else None

    def before(self, advance: Callable[[int], object]) -> Run | None:
        """The squares of what comes before the layers; see `down`."""
        stage = BeforeLayers(self.layers, self._recordings, self._stage, self.outer.both)
        return self._squares(stage, self.outer.before, advance) if self.outer.before else None

    def down(self, number: int, advance: Callable[[int], object]) -> Run | None:
        """The squares of a layer, which has its weights, and the gradients that enter the one below.

        Args:
            number: of the layer; the one above is done.
            advance: told of every batch how many tokens are done with.

        Returns:
            The run, whose sums are complete; None where nothing of the layer is selected.
        """
        stage = LayerStage(self.layers, number, self._recordings)
        run = self._squares(stage, self._own[number], advance) if self._own[number] else None
        with frozen(self._model):
            stage.finish()
        return run

    def forget(self, number: int) -> None:
        """Make room: a layer is done for good, and what came out of it and the gradient there are of no more use."""
        for recorded in (*self._run, *self._probes):
            if not (self.outer.both and number + 1 == len(self._own)):
                self.boundaries.discard((number + 1, recorded.call))
            self.boundaries.discard(gradient_key(number + 1, recorded.call))

    def _ask(self) -> Rules:
        texts = [sample.input_ids for sample in self.samples]
        return check_rules(self._model, texts, tokens=self.budget, thorough=self.rules.batches != PADDED)

    def _recorded(self, batch: Batch, stage: WholeModel, calls: list[Call]) -> Recorded:
        stage.forward(batch)
        return Recorded(batch, calls[-1])

    def _batches(self) -> list[Batch]:
        """The run's batches: single samples where autograd has to take a parameter, as in a resident run."""
        alone = 1 if capturable(self._model, self.selection)[1] else None
        plan = self.rules.plan([len(self.samples[i]) for i in self.own], self.budget, alone)
        return [collate(self.samples, [self.own[i] for i in indices]) for indices in plan]

    def _probe_batches(self) -> list[Batch]:
        """All that `choose_methods` and what follows from it look at: batches, and each of their samples alone."""
        cuts = probe_samples(self.samples)
        batches = [collate(cuts, indices) for indices in ([0], [1], *short_batches(self.rules))]
        for indices in long_batches([len(sample) for sample in self.samples], self.rules, self.budget):
            chosen = [self.samples[i] for i in indices]
            batches += [
                collate(chosen, group) for group in (range(len(chosen)), *([i] for i in range(len(chosen))))
            ]
        return batches

    def _head(self) -> None:
        """The losses of every batch, and their gradient at the last layer's output."""
        leaves: list[Tensor] = []

        def leaf(call: Call, output: Tensor) -> Tensor:
            leaves[:] = [output.detach().requires_grad_()]
            return leaves[0]

        def losses(recorded: Recorded, stage: WholeModel, called: list[str]) -> Tensor:
            losses = stage.forward(recorded.batch)
            stage.check(losses, called)
            stage.backward(losses, recorded.batch)
            gradient = leaves[0].grad
            assert gradient is not None
            self.boundaries[gradient_key(len(self.layers.modules), recorded.call)] = gradient
            return losses

        calls = [recorded.call for recorded in (*self._run, *self._probes)]
        with self.layers.answering(calls, leaf), frozen(self._model):
            for recorded in self._run:
                called = [self.samples[i].called(f"sample {i}") for i in recorded.batch.indices]
                losses(recorded, self._stage, called)
            probing = self._stage.probing()
            for number, recorded in enumerate(self._probes):
                called = [f"the probe's sample {i}" for i in recorded.batch.indices]
                loss = losses(recorded, probing, called)
                if number == 0:
                    self._short_loss = float(loss.detach())

    def _squares(self, stage: Stage, own: dict[str, nn.Parameter], advance: Callable[[int], object]) -> Run:
        methods = choose_methods(stage, own, self.samples, self.rules, self.budget)
        run = Run(stage, own, methods, self.samples, self._impl, self._precision)
        run.all_batches(self.budget, advance, self.own)
        return run
