"""The Fisher diagonal layer by layer: each layer is there for all batches, once on the way up and once on the way down.

Up: every layer takes all batches forward, and what enters it is kept. The head then makes losses of them, and the
gradients that enter the last layer. Down: every layer, from the last to the first, takes all batches forward again
and back, as a stage of its own (`LayerStage`). Its parameters are probed, captured or left to autograd as those of a
resident model are, and its F is complete when it leaves. What the rules and the probe ask goes along with the batches,
so that all of it takes two readings of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from tomfisher import ops
from tomfisher.fisher.capture import capturable
from tomfisher.fisher.layer_stage import LayerStage, Recorded, gradient_key
from tomfisher.fisher.probe import choose_methods, long_batches, probe_samples, short_batches
from tomfisher.fisher.run import Run
from tomfisher.fisher.stage import WholeModel
from tomfisher.runtime.batches import Batch, collate
from tomfisher.runtime.layerwise import Call, Layers
from tomfisher.runtime.modes import frozen
from tomfisher.runtime.rules import Rules, check_rules, weights_kept
from tomfisher.sample import Sample

Block = Callable[[], AbstractContextManager[object]]


class LayerwiseRun:
    """One run over layers that come and go: `record`, `up`, `down`.

    Args:
        layers: of the model, which have learnt how it hands hidden states on.
        outside: a block in which the parameters outside the layers have their values.
        selection: parameters of the layers, by name.
        samples: what goes through.
        stage: how losses are made of logits.
        budget: `B * T` of a batch.
        impl: of the ops.
        precision: of their float32 products.

    Attributes:
        rules: what the model was found to do, after `up`; before it what is assumed of it.
    """

    def __init__(
        self,
        layers: Layers,
        outside: Block,
        selection: Mapping[str, nn.Parameter],
        samples: list[Sample],
        stage: WholeModel,
        budget: int,
        impl: ops.Impl,
        precision: ops.Precision,
    ) -> None:
        self.layers, self.outside, self.samples, self.budget = layers, outside, samples, budget
        self.model = layers.model
        self.rules = Rules()
        self._stage, self._impl, self._precision = stage, impl, precision
        self.selection = dict(selection)
        self._own = [{n: self.selection[n] for n in names if n in selection} for names in layers.parameters]
        self._asked: list[Call] = []
        self._run: list[Recorded] = []
        self._probes: list[Recorded] = []

    @property
    def calls(self) -> list[Call]:
        """All that was recorded, in order."""
        return [*self._asked, *(recorded.call for recorded in (*self._run, *self._probes))]

    @property
    def lowest(self) -> int:
        """The first layer with selected parameters: no gradient is needed below it."""
        return next(number for number, own in enumerate(self._own) if own)

    def record(self) -> None:
        """The forwards of the rules, the run and the probe, through layers that hand their input on as it is.

        It belongs into a block `outside`.
        """
        with self.layers.recording() as self._asked:
            self._ask()
        with self.layers.recording() as calls, torch.no_grad(), frozen(self.model):
            self._run = [self._recorded(batch, self._stage, calls) for batch in self._batches()]
            probing = self._stage.probing()
            self._probes = [self._recorded(batch, probing, calls) for batch in self._probe_batches()]

    def up(self, done: Callable[[int], object], start: int = 0) -> bool:
        """All forwards, and the gradients that enter the last layer.

        Args:
            done: told of every layer that it is done with.
            start: the first layer that is not done yet.

        Returns:
            False where rows stood in one forward that must not, as `rules` now says: record again and begin anew.
        """
        assumed = self.rules
        self.layers.forward(self.calls, keep=True, done=done, start=start)
        with self.outside():
            self.ask()
            if self.rules.batches == assumed.batches:
                self._head([recorded.call for recorded in (*self._run, *self._probes)])
        return self.rules.batches == assumed.batches

    def ask(self) -> None:
        """What the rules say, from what has come out of the last layer. It belongs into a block `outside`."""
        with self.layers.answering(self._asked):
            self.rules = self._ask()

    def down(
        self,
        take: Callable[[int, Run | None], object],
        advance: Callable[[int], object],
        start: int | None = None,
    ) -> None:
        """The squares of every layer, from the last to the first with selected parameters.

        Args:
            take: given a layer's number and its run, whose sums are complete; None where nothing of it is selected.
            advance: told of every batch of a layer how many tokens are done with.
            start: the first layer that is not done yet; None for the last layer.
        """
        last = len(self.layers.modules) - 1
        for number in range(last if start is None else start, self.lowest - 1, -1):
            following = number - 1 if number > self.lowest else -1
            with self.layers.on(number, following), weights_kept(self.layers.modules[number]):
                stage = LayerStage(self.layers, number, self._run, self._probes)
                run = self._squares(stage, self._own[number], advance) if self._own[number] else None
                with frozen(self.model):
                    stage.finish()
            for recorded in (*self._run, *self._probes):
                self.layers.boundaries.discard((number + 1, recorded.call))
                self.layers.boundaries.discard(gradient_key(number + 1, recorded.call))
            take(number, run)

    def _ask(self) -> Rules:
        return check_rules(self.model, [sample.input_ids for sample in self.samples], tokens=self.budget)

    def _recorded(self, batch: Batch, stage: WholeModel, calls: list[Call]) -> Recorded:
        stage.forward(batch)
        return Recorded(batch, calls[-1])

    def _batches(self) -> list[Batch]:
        """The run's batches: single samples where autograd has to take a parameter, as in a resident run."""
        alone = 1 if capturable(self.model, self.selection)[1] else None
        plan = self.rules.plan([len(sample) for sample in self.samples], self.budget, alone)
        return [collate(self.samples, indices) for indices in plan]

    def _probe_batches(self) -> list[Batch]:
        """All that `choose_methods` and what follows from it look at: batches, and each of their samples alone."""
        cuts = probe_samples(self.samples)
        batches = [collate(cuts, indices) for indices in (*short_batches(self.rules), [0], [1])]
        for indices in long_batches([len(sample) for sample in self.samples], self.rules, self.budget):
            chosen = [self.samples[i] for i in indices]
            batches += [
                collate(chosen, group) for group in (range(len(chosen)), *([i] for i in range(len(chosen))))
            ]
        return batches

    def _head(self, calls: list[Call]) -> None:
        """The losses of every batch, and their gradient at the last layer's output."""
        leaves: list[tuple[Call, Tensor]] = []

        def leaf(call: Call, output: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                return output
            leaves[:] = [(call, output.detach().requires_grad_())]
            return leaves[0][1]

        def keep(recorded: Recorded) -> None:
            call, hidden = leaves[0]
            assert call is recorded.call and hidden.grad is not None
            self.layers.boundaries[gradient_key(len(self.layers.modules), call)] = hidden.grad

        with self.layers.answering(calls, leaf), frozen(self.model):
            for recorded in self._run:
                called = [self.samples[i].called(f"sample {i}") for i in recorded.batch.indices]
                self._losses(self._stage, recorded, called)
                keep(recorded)
            for recorded in self._probes:
                called = [f"the probe's sample {i}" for i in recorded.batch.indices]
                self._losses(self._stage.probing(), recorded, called)
                keep(recorded)

    @staticmethod
    def _losses(stage: WholeModel, recorded: Recorded, called: list[str]) -> None:
        losses = stage.forward(recorded.batch)
        stage.check(losses, called)
        stage.backward(losses, recorded.batch)

    def _squares(
        self, stage: LayerStage, own: dict[str, nn.Parameter], advance: Callable[[int], object]
    ) -> Run:
        methods = choose_methods(stage, own, self.samples, self.rules, self.budget)
        run = Run(stage, own, methods, self.samples, self._impl, self._precision)
        run.all_batches(self.budget, advance)
        return run
