"""Batches through a stage, and the squares of every parameter of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from tomfisher import ops
from tomfisher.fisher.capture import Capture
from tomfisher.fisher.contributions import Accumulator
from tomfisher.fisher.flags import where
from tomfisher.fisher.probe import Methods, examine
from tomfisher.fisher.stage import Stage
from tomfisher.runtime.batches import Batch
from tomfisher.runtime.memory import is_out_of_memory, release
from tomfisher.runtime.modes import frozen
from tomfisher.runtime.onednn import concerns
from tomfisher.sample import Sample


@dataclass
class _Pending:
    """Samples to come as one batch, and the modules and fallback parameters that already have their squares."""

    indices: list[int]
    skip: set[str] = field(default_factory=set)


class Run:
    """One pass of the samples through a stage: the accumulators and what is needed to fill them.

    Args:
        stage: what the batches go through.
        selection: parameters of it, by name.
        methods: how each of them is computed.
        samples: what goes through.
        impl: of the ops.
        precision: of their float32 products.

    Attributes:
        F: the sums, by parameter name.
        methods: as they are by now: what a batch shows may move parameters to the fallback.
        budget: `B * T` of a batch, after what did not fit.
        implementations: which implementation of each op runs.
    """

    def __init__(
        self,
        stage: Stage,
        selection: dict[str, nn.Parameter],
        methods: Methods,
        samples: list[Sample],
        impl: ops.Impl,
        precision: ops.Precision,
    ) -> None:
        self.stage, self.selection, self.methods, self.samples = stage, selection, methods, samples
        self.impl = impl
        self.F = {
            name: torch.zeros(
                stage.split.shape(selection[name]), dtype=torch.float32, device=selection[name].device
            )
            for name in (*methods.captured, *methods.fallback)
        }
        self.budget = 0
        self.implementations = {"linear@cpu": "onednn"} if concerns(stage.model) else {}
        self._resolve("squared_gradient_", methods.captured)
        self._pending: list[_Pending] = []
        self._finished: set[int] = set()
        self._running: list[int] = []
        self._skip: set[str] = set()
        self._squared: list[tuple[str, Tensor]] = []  # of the fallback, and whether its gradient was finite
        self._found: set[str] = set()  # watched parameters that the running batch reached
        self._disproved: set[str] = set()  # whose squares have to be computed anew, of all finished samples
        self._split: set[frozenset[str]] = (
            set()
        )  # sets of modules whose first batch was looked at sample by sample
        self._hooks = ExitStack()
        split = stage.split
        accumulators = {
            n: Accumulator(self.F[n], None, split.part(selection[n]), split.total(selection[n]))
            for n in methods.captured
        }
        self.capture = Capture(methods.modules, accumulators, impl, precision, methods.layouts)

    def _resolve(self, op: str, names: Iterable[str]) -> None:
        """Name the implementation of an op before it is used, so that a missing one stops the run early."""
        for device in {self.selection[n].device for n in names}:
            self.implementations[f"{op}@{device.type}"] = ops.resolve(op, self.impl, device)[0]

    def all_batches(
        self, budget: int, advance: Callable[[int], object], indices: Sequence[int] | None = None
    ) -> None:
        """Every sample once; the budget halves for good whenever memory runs out.

        Args:
            budget: `B * T` of a batch.
            advance: told of every batch how many tokens are done with.
            indices: of the samples that go through; None for all.
        """
        self.budget = budget
        with frozen(self.stage.model), self._hooks, self.capture:
            self._by_autograd(self.methods.fallback)
            chosen = range(len(self.samples)) if indices is None else indices
            self._pending = [_Pending(b) for b in reversed(self._batches(chosen, budget))]
            while self._pending:
                entry = self._pending.pop()
                batch = self.stage.batch(self.samples, entry.indices)
                alone = self.methods.one_at_a_time
                full = None
                try:
                    complete = self._one_batch(batch, entry)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    full = error.with_traceback(None)  # whose frames hold what the batch has in memory
                if full is not None:
                    if self.stage.split.is_split:  # the others are in the midst of the same batch
                        raise MemoryError(
                            f"A batch of {batch.shape[0]} x {batch.shape[1]} tokens does not fit on this rank, and "
                            "ranks that share a model take no smaller ones by themselves. Set tokens_per_batch below "
                            f"{budget}."
                        ) from full
                    self.budget = budget = max(1, budget // 2)
                    self._found = set()
                    self._replan(budget)
                    self._pending += self._halves(batch, entry.skip, full)
                    continue
                if self.methods.one_at_a_time != alone:
                    self._replan(budget)
                if complete:
                    advance(sum(len(self.samples[i]) for i in set(entry.indices) - self._finished))
                    self._finished |= set(entry.indices)
                else:
                    self._pending += [_Pending([i], set(entry.skip)) for i in entry.indices]
                self._schedule_again()
        # squares are no less than 0, so that the largest tells
        for name in where({n: ~torch.isfinite(F.amax()) for n, F in self.F.items() if F.numel()}):
            raise FloatingPointError(
                f"The squares of {name} overflow float32. Load the model in float32, or check its weights."
            )

    def _batches(self, indices: Sequence[int], budget: int) -> list[list[int]]:
        # a parameter on the fallback needs the gradient of one sample alone
        return self.stage.plan(self.samples, indices, budget, 1 if self.methods.one_at_a_time else None)

    def _replan(self, budget: int) -> None:
        """Plan the batches to come anew; those that are begun stay, and come first."""
        untouched = sorted(i for entry in self._pending if not entry.skip for i in entry.indices)
        begun = [entry for entry in self._pending if entry.skip]
        self._pending = [_Pending(b) for b in reversed(self._batches(untouched, budget))] + begun

    def _schedule_again(self) -> None:
        """Samples whose squares of some parameters have to be computed again, alone."""
        everything = set(self.methods.modules) | set(self.methods.fallback)
        if self.methods.unreached:
            self._found = self.stage.split.union("what was found", self._found)
        if self._found:
            self.methods = replace(self.methods, unreached=self.methods.unreached - self._found)
            self._resolve("square_accumulate_", self._found)
            self._pending += [_Pending([i], everything - self._found) for i in self._running]
        if self._disproved:
            for name in self._disproved:
                self.F[name].zero_()
            for entry in self._pending:
                if self._finished.issuperset(entry.indices):
                    entry.skip |= self._disproved
            self._pending += [_Pending([i], everything - self._disproved) for i in sorted(self._finished)]
        self._found, self._disproved = set(), set()

    def _one_batch(self, batch: Batch, entry: _Pending) -> bool:
        """Add the squares of a batch; False if nothing was added and its samples have to come again, alone."""
        self._running, self._skip = batch.indices, entry.skip
        with self.capture.batch(batch, entry.skip):
            outputs = self.stage.forward(batch)
            if self._is_new_kind(batch, entry):
                return False
            self._squared = []
            self.stage.backward(outputs, batch)
        self._check_finite(batch, self.stage.per_sample(outputs, batch))
        self._prove(batch)
        return True

    def _check_finite(self, batch: Batch, values: Tensor) -> None:
        """Stop at a loss or a gradient that is not finite: the one time that the host waits for a batch."""
        sums = self.capture.gradient_sums()
        finite = torch.isfinite(torch.stack([values, *(s.to(values.device) for _, s in sums)]))
        alone = [flag.to(values.device).view(1, 1) for _, flag in self._squared]  # of one sample
        bad = (~torch.cat([finite, *alone])).cpu().nonzero()
        if not len(bad):
            return
        place, row = bad[0].tolist()
        sample = self._called(batch.indices[row])
        self.stage.check(values, [self._called(i) for i in batch.indices])
        names = [f"at the output of {name}" for name, _ in sums] + [f"of {name}" for name, _ in self._squared]
        raise FloatingPointError(
            f"The gradient {names[place - 1]} is not finite for {sample}. "
            "Load the model in float32 or bfloat16, or leave this sample out."
        )

    def _is_new_kind(self, batch: Batch, entry: _Pending) -> bool:
        """Whether a batch has to be begun again, one sample at a time, because it is not what the probe saw.

        A module that is called more than once, or whose tensors do not show the samples as before, goes to the
        fallback. Where another set of modules ran, every sample that does so alone is looked at both ways.
        """
        objections = {n: r for n, r in self.capture.objections().items() if n in self.methods.modules}
        if objections:
            reasons = {
                parameter: f"{reason}, with {self._called(batch.indices[0])}"
                for name, reason in objections.items()
                for parameter in self.methods.modules[name].parameters.values()
            }
            self._keep_what_is_done([*self._pending, entry], reasons)
            self._move(reasons)
            return True
        called = self.capture.called()
        if self.methods.knows(called):
            return False
        if len(batch.indices) == 1:
            return self._examine(batch.indices[0])
        if called in self._split:
            return False
        self._split.add(called)
        return True

    def _keep_what_is_done(self, begun: list[_Pending], moved: Iterable[str]) -> None:
        """What a module has added before it went to the fallback is right, and stays."""
        module_of = {p: name for name, m in self.methods.modules.items() for p in m.parameters.values()}
        for entry in begun:
            entry.skip |= {name for name in moved if module_of[name] in entry.skip}

    def _examine(self, index: int) -> bool:
        """Look at one sample both ways; whether something disagreed, which is then done again for all samples."""
        before = self.methods
        with self.capture.aside():
            sample = replace(self.samples[index], name=self._called(index))
            after = examine(self.stage.probing(), self.selection, before, [sample], [[0]])
        moved = {name: r for name, r in after.fallback.items() if name not in before.fallback}
        self.methods = replace(
            before, called=after.called, unproven=after.unproven, unreached=after.unreached
        )
        self._move(moved)
        self._disproved |= moved.keys()
        return bool(moved)

    def _prove(self, batch: Batch) -> None:
        """Look at samples of a batch both ways where it gave captured parameters their first gradient."""
        if not self.methods.unproven:
            return
        reached = self.stage.split.union(
            "what is proved", where({name: self.F[name].any() for name in self.methods.unproven})
        )
        for index in batch.indices:
            if not self.methods.unproven.isdisjoint(reached):
                self._examine(index)
        self.methods = replace(self.methods, unproven=self.methods.unproven - reached)

    def _move(self, reasons: dict[str, str]) -> None:
        """From here on autograd takes these parameters."""
        self.methods = self.methods.moved(reasons)
        for name in reasons:
            self.capture.accumulators.pop(name, None)
        self._by_autograd(reasons)

    def _by_autograd(self, names: Iterable[str]) -> None:
        """Square each gradient of these parameters as soon as autograd has it, and free it."""
        self._resolve("square_accumulate_", [n for n in names if n not in self.methods.unreached])
        for name in names:
            parameter = self.selection[name].requires_grad_(True)
            self._hooks.callback(parameter.register_post_accumulate_grad_hook(self._take(name)).remove)

    def _halves(self, batch: Batch, skip: set[str], error: BaseException) -> list[_Pending]:
        """Split a batch that did not fit; modules that already have all of it are skipped in both halves."""
        done = skip | self.capture.done()
        release()
        if len(batch.indices) == 1:
            raise MemoryError(
                f"{self._called(batch.indices[0])} with {batch.num_tokens} tokens does not fit in memory alone. "
                "Shorten it (max_length), select fewer parameters (params), use gradient checkpointing "
                "(model.gradient_checkpointing_enable()) or a 16-bit dtype."
            ) from error
        middle = len(batch.indices) // 2
        return [_Pending(batch.indices[middle:], done), _Pending(batch.indices[:middle], done)]

    def _called(self, index: int) -> str:
        return self.samples[index].called(f"sample {index}")

    def _take(self, name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            if self.capture.off:
                return
            gradient, parameter.grad = parameter.grad, None
            if gradient is None or name in self._skip:
                return
            gradient = self.stage.split.local(gradient, parameter)
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            alone = len(self._running) == 1
            if name in self.methods.unreached and bool(gradient.any()):
                if alone:
                    self._resolve("square_accumulate_", [name])
                else:
                    self._found.add(name)
            if not alone:
                return
            self._squared.append((name, torch.isfinite(gradient).all()))
            ops.square_accumulate_([self.F[name]], [gradient], impl=self.impl)

        return take
