"""`fisher_diagonal`: samples in, exact per-sample squared gradients out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import get_args

import torch
from torch import Tensor, nn

from tomfisher import ops
from tomfisher.fisher.batching import Batch, collate, plan_batches
from tomfisher.fisher.capture import Capture
from tomfisher.fisher.contributions import Accumulator
from tomfisher.fisher.diagonal import FisherDiagonal
from tomfisher.fisher.frozen import frozen
from tomfisher.fisher.linear_maps import coverage, decoder_linear_weights
from tomfisher.fisher.memory import is_out_of_memory, release, token_budget
from tomfisher.fisher.objective import Labels, Reduction, backward, check_losses, sample_losses
from tomfisher.fisher.roads import Roads, find_roads
from tomfisher.fisher.selection import Params, describe_params, left_out, select_parameters
from tomfisher.models.load import identify
from tomfisher.models.onednn import concerns
from tomfisher.progress import progress_bar
from tomfisher.provenance import versions
from tomfisher.runtime.forward import device_of
from tomfisher.runtime.gate import check_samples, check_trainable, plain_torch
from tomfisher.runtime.rules import SINGLE, Rules, check_rules
from tomfisher.sample import Sample, digest


@plain_torch()
def fisher_diagonal(
    model: nn.Module,
    samples: Sequence[Sample],
    params: Params = "decoder-linear",
    labels: Labels = "empirical",
    reduction: Reduction = "mean",
    tokens_per_batch: int | str = "auto",
    impl: ops.Impl = "auto",
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    seed: int = 0,
) -> FisherDiagonal:
    """Diagonal of the Fisher information, exact per sample: `F_i = Σ_n (∂ℓ_n/∂θ_i)²`.

    ℓ_n is the negative log-likelihood (nats) of the supervised tokens of sample n, averaged ("mean", the
    paper's) or summed ("sum") over those tokens. Squares are of the gradient of ONE sample, never of a batch
    sum or of a token, and are summed over samples in float32. Equivalent PyTorch::

        for sample in samples:
            loss(model, sample).backward()
            for name, p in selected: F[name] += p.grad.float() ** 2; p.grad = None

    but no weight gradient is ever stored where a module can be captured: see `.roads` of the result.

    Args:
        model: a transformers causal language model, on any device(s), in any floating-point dtype. It comes
            back as it was: weights, `requires_grad`, `.grad`, training flags.
        samples: token sequences with labels; ragged lengths are fine.
        params: "decoder-linear" (weight matrices of the decoder layers), "attention-qk", "all", glob
            pattern(s), or a predicate `(name, parameter) -> bool`.
        labels: "empirical" uses the samples' labels, "sampled" draws them from the model's prediction at the
            supervised positions (Monte-Carlo estimate of the true Fisher, one draw per sample).
        reduction: over the supervised tokens of one sample.
        tokens_per_batch: budget of `B * T` per backward pass, or "auto". Halved when memory runs out.
        impl: implementation of the ops: "auto", "triton", "cpp" or "reference".
        out: folder to save the result to as a Fisher store.
        progress: show a bar on a terminal.
        seed: for labels="sampled".

    Returns:
        FisherDiagonal: parameter name to float32 tensor of the parameter's shape and device, with
        `num_samples`, `num_tokens`, `definition`, `roads` and `implementations`.

    Raises:
        TypeError: a sample is no `Sample`.
        ValueError: no samples, an unknown option, ids outside the vocabulary, a sample longer than the
            model's context, nothing selected, or a model that breaks a rule that a likelihood rests on
            (`tomfisher.runtime.rules`); what it allows is in `.metadata["rules"]`.
        NotImplementedError: the implementation asked for does not exist here.
        FloatingPointError: a loss or gradient is not finite; names the sample and the tensor.
        MemoryError: one sample alone does not fit.

    Source:
        arXiv 2504.04238 (empirical, "mean", one sample per backward pass).
    """
    samples = list(samples)
    _check_arguments(model, samples, labels, reduction)
    selection = select_parameters(model, params)
    linear = selection if params == "decoder-linear" else decoder_linear_weights(model)
    for device in {parameter.device for parameter in selection.values()}:
        ops.resolve("squared_gradient_", impl, device)  # one that is missing stops the run before the probe
    budget = token_budget(tokens_per_batch, model, device_of(model))
    rules = check_rules(model, [sample.input_ids for sample in samples], budget // max(map(len, samples)))
    roads = find_roads(model, selection, samples, reduction)
    run = _Run(model, selection, roads, samples, labels, reduction, impl, seed, rules)
    run.all_batches(budget, progress)
    result = FisherDiagonal(
        run.F,
        num_samples=len(samples),
        num_tokens=sum(len(s) for s in samples),
        roads=roads.describe(),
        metadata={
            "definition": {
                "formula": "F_i = sum over samples of (d loss_n / d theta_i)^2",
                "loss": "negative log-likelihood of the supervised tokens, nats",
                "labels": labels,
                "reduction": reduction,
                "seed": seed if labels == "sampled" else None,
            },
            "params": describe_params(params),
            "left_out": left_out(model, params),
            "coverage": coverage(linear, roads.describe()).to_dict(),
            "model": identify(model, getattr(model.config, "_name_or_path", "")),
            "data_sha256": digest(samples),
            "implementations": run.implementations,
            "rules": rules.to_dict(),
            "versions": versions(),
        },
    )
    if out is not None:
        result.save(out)
    return result


class _Run:
    """One pass over the samples: the accumulators and what is needed to fill them."""

    def __init__(
        self,
        model: nn.Module,
        selection: dict[str, nn.Parameter],
        roads: Roads,
        samples: list[Sample],
        labels: Labels,
        reduction: Reduction,
        impl: ops.Impl,
        seed: int,
        rules: Rules,
    ) -> None:
        self.model, self.selection, self.roads, self.samples = model, selection, roads, samples
        self.labels, self.reduction, self.impl, self.seed = labels, reduction, impl, seed
        self.rules = rules
        self.F = {
            name: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for name, p in selection.items()
        }
        self.implementations = self._resolve()
        self._running = ""
        self.capture = Capture(roads.modules, {n: Accumulator(self.F[n]) for n in roads.captured}, impl)

    def _resolve(self) -> dict[str, str]:
        """Name the implementation of each op before the run, so that a missing one stops it early."""
        used = {"linear@cpu": "onednn"} if concerns(self.model) else {}
        for op, names in (
            ("squared_gradient_", self.roads.captured),
            ("square_accumulate_", self.roads.fallback),
        ):
            for device in {self.selection[n].device for n in names}:
                used[f"{op}@{device.type}"] = ops.resolve(op, self.impl, device)[0]
        return used

    def all_batches(self, budget: int, progress: bool) -> None:
        """Every sample once; the budget halves for good whenever memory runs out."""
        # a parameter on the fallback road needs the gradient of one sample alone
        most = 1 if self.roads.fallback or self.rules.batches == SINGLE else None
        queue = self._batches(range(len(self.samples)), budget, most)
        trainable = tuple(self.selection[n] for n in self.roads.fallback)
        total = sum(len(s) for s in self.samples)
        with (
            frozen(self.model, trainable),
            self._squares_of_fallback(),
            self.capture,
            progress_bar(total=total, desc="Fisher", unit="token", enabled=progress) as bar,
        ):
            pending = [(indices, set[str]()) for indices in reversed(queue)]
            while pending:
                indices, skip = pending.pop()
                batch = collate(self.samples, indices)
                try:
                    self._one_batch(batch, skip)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    budget = max(1, budget // 2)
                    started = [entry for entry in pending if entry[1]]
                    untouched = sorted(i for indices, done in pending if not done for i in indices)
                    pending = [(b, set()) for b in reversed(self._batches(untouched, budget, most))]
                    pending += started + self._halves(batch, skip, error)
                    continue
                bar.update(batch.num_tokens)
        for name, F in self.F.items():
            if not bool(torch.isfinite(F).all()):
                raise FloatingPointError(
                    f"The squares of {name} overflow float32. Load the model in float32, or check its weights."
                )

    def _batches(self, indices: Sequence[int], budget: int, most: int | None) -> list[list[int]]:
        lengths = [len(self.samples[i]) for i in indices]
        return [
            [indices[i] for i in batch] for batch in plan_batches(lengths, budget, most, self.rules.padded)
        ]

    def _one_batch(self, batch: Batch, skip: set[str]) -> None:
        self._running = self._called(batch.indices[0])
        with self.capture.batch(batch, skip):
            losses = sample_losses(self.model, batch, self.labels, self.reduction, self.seed)
            check_losses(self.model, losses, [self._called(i) for i in batch.indices])
            backward(losses)
        found = self.capture.first_non_finite()
        if found is not None:
            module, row = found
            raise FloatingPointError(
                f"The gradient at the output of {module} is not finite for {self._called(batch.indices[row])}. "
                "Load the model in float32 or bfloat16, or leave this sample out."
            )
        for name in self.roads.modules:
            calls = self.capture.calls.get(name, 0)
            if calls > 1 or name in self.capture.unreadable:
                raise RuntimeError(
                    f"{name} was called once in the probe but {calls} times with "
                    f"{self._called(batch.indices[0])}. Leave its parameters out with params=, and report it."
                )

    def _halves(self, batch: Batch, skip: set[str], error: BaseException) -> list[tuple[list[int], set[str]]]:
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
        return [(batch.indices[middle:], done), (batch.indices[:middle], done)]

    def _called(self, index: int) -> str:
        return self.samples[index].called(f"sample {index}")

    def _squares_of_fallback(self) -> ExitStack:
        """Hooks that square each fallback gradient as soon as autograd has it, and free it."""
        stack = ExitStack()
        for name in self.roads.fallback:
            stack.callback(self.selection[name].register_post_accumulate_grad_hook(self._take(name)).remove)
        return stack

    def _take(self, name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            gradient = parameter.grad
            if gradient is None:
                return
            if not bool(torch.isfinite(gradient).all()):
                raise FloatingPointError(
                    f"The gradient of {name} is not finite for {self._running}. "
                    "Load the model in float32 or bfloat16, or leave this sample out."
                )
            ops.square_accumulate_([self.F[name]], [gradient], impl=self.impl)
            parameter.grad = None

        return take


def _check_arguments(model: nn.Module, samples: list[Sample], labels: str, reduction: str) -> None:
    check_trainable(model, "A Fisher diagonal")
    if not samples:
        raise ValueError("samples is empty: a Fisher diagonal needs at least one Sample.")
    for value, allowed, name in (
        (labels, get_args(Labels), "labels"),
        (reduction, get_args(Reduction), "reduction"),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
    check_samples(model, samples)
