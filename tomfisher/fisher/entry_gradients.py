"""Per-sample gradients of chosen entries alone: `[samples, entries]` instead of `[samples, all weights]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tomfisher.fisher.capture import Capture
from tomfisher.fisher.contributions import Accumulator, BatchLayout, linear
from tomfisher.fisher.objective import Labels, Reduction
from tomfisher.fisher.probe import Methods, choose_methods
from tomfisher.fisher.stage import WholeModel
from tomfisher.progress import progress_bar
from tomfisher.runtime.batches import Batch
from tomfisher.runtime.device import device_of
from tomfisher.runtime.gate import check_samples, check_trainable
from tomfisher.runtime.memory import is_out_of_memory, release, token_budget
from tomfisher.runtime.modes import frozen
from tomfisher.runtime.rules import check_rules
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.sample import Sample

BLOCK = 1 << 20  # products at a time
DENSE = 32  # an entry chosen from a product costs about as much as so many entries of the whole product


@dataclass(frozen=True)
class _Entries(Accumulator):
    """Takes the gradient of every sample of a batch at chosen entries of a weight matrix.

    `found` has one tensor `[B, k]` after the batch.
    """

    positions: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    found: list[Tensor] = field(default_factory=list)

    def add(self, left: Tensor, right: Tensor, layout: BatchLayout) -> None:
        """See `Accumulator`: `Σ_t left[n, t, row] · right[n, t, column]` of every entry."""
        (B, T, height), width = left.shape, right.shape[-1]
        if DENSE * self.positions.numel() > height * width:  # so many that whole products cost less
            whole = [
                (a.float().T @ b.float()).reshape(-1)[self.positions]
                for a, b in zip(left, right, strict=True)
            ]
            self.found.append(torch.stack(whole))
            return
        # a row of T numbers for every sample and feature: what is chosen are whole rows
        rows, columns = self.positions // width, self.positions % width
        left, right = (t.float().permute(2, 0, 1).contiguous() for t in (left, right))
        step = max(1, BLOCK // max(1, B * T))
        parts = [
            (left[r] * right[c]).sum(2).T for r, c in zip(rows.split(step), columns.split(step), strict=True)
        ]
        self.found.append(torch.cat(parts, 1))


Gradients = dict[str, Tensor]  # parameter name to [B, k] of a batch


@plain_torch()
def entry_gradients(
    model: nn.Module,
    samples: Sequence[Sample],
    entries: Mapping[str, Tensor],
    labels: Labels = "empirical",
    reduction: Reduction = "mean",
    tokens_per_batch: int | str = "auto",
    progress: bool = True,
    seed: int = 0,
) -> Iterator[tuple[list[int], Gradients]]:
    """∂ℓ_n/∂θ_i of every sample at chosen entries, batch by batch, in one pass like that of the Fisher diagonal.

    Weight matrices are captured where `tomfisher.fisher_diagonal` captures them, at the cost of tokens times entries;
    what it cannot capture, and everything that is no matrix of a linear map, is taken by autograd one sample at a time.
    Equivalent PyTorch::

        for n, sample in enumerate(samples):
            loss(model, sample).backward()
            yield [n], {name: parameter(name).grad.flatten()[index][None] for name, index in entries.items()}

    Args:
        model: a transformers causal language model.
        samples: at least one.
        entries: parameter name to flat row-major positions, int64 `[k]`, such as a `SparseMask`; empty ones are left
            out.
        labels: see `tomfisher.fisher_diagonal`, as the rest.
        reduction: over the tokens of one sample.
        tokens_per_batch: `B * T` of a batch, or "auto".
        progress: show a bar on a terminal.
        seed: of sampled labels.

    Yields:
        Indices of the samples of a batch, and the gradients `[B, k]`, float32, by parameter name.

    Raises:
        ValueError: there are no samples, or the model has no parameter of that name.
        FloatingPointError: a loss is not finite.
    """
    if not samples:
        raise ValueError("samples is empty: gradients need at least one Sample.")
    chosen = list(samples)
    check_trainable(model, "A gradient")
    check_samples(model, chosen)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wanted = {name: index for name, index in entries.items() if index.numel()}
    if unknown := [name for name in wanted if name not in parameters]:
        raise ValueError(
            f"This {type(model).__name__} has no parameter {unknown[0]!r}. Use a mask of this model."
        )
    selection = {name: parameters[name] for name in wanted}
    budget = token_budget(tokens_per_batch, model, device_of(model))
    rules = check_rules(model, [sample.input_ids for sample in chosen], tokens=budget)
    stage = WholeModel(model, rules, labels, reduction, seed)
    taker = _Taker(stage, selection, wanted, choose_methods(stage, selection, chosen, rules, budget))
    pending = stage.plan(chosen, range(len(chosen)), budget, 1 if taker.alone else None)[::-1]
    with progress_bar(total=sum(map(len, chosen)), desc="gradients", unit="token", enabled=progress) as bar:
        while pending:
            indices = pending.pop()
            batch = stage.batch(chosen, indices)
            try:
                found = taker(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(indices) == 1:
                    raise
                found = None
            if found is None:  # it did not fit, or was not what the probe had seen: in halves
                release()
                middle = len(indices) // 2
                pending += [indices[middle:], indices[:middle]]
                continue
            yield indices, found
            bar.update(batch.num_tokens)


class _Taker:
    """Takes the gradients of one batch.

    Args:
        stage: what it goes through.
        selection: the parameters.
        entries: positions of each.
        methods: how the probe says that each is to be taken.

    Attributes:
        alone: whether some parameter needs every sample alone.
    """

    def __init__(
        self,
        stage: WholeModel,
        selection: dict[str, nn.Parameter],
        entries: dict[str, Tensor],
        methods: Methods,
    ) -> None:
        self.stage, self.selection, self.entries = stage, selection, entries
        self.methods = methods.moved(
            {n: "no matrix of a linear map" for n in methods.captured if not self._is_matrix(n, methods)}
        )
        self.alone = bool(self.methods.fallback)

    @staticmethod
    def _is_matrix(name: str, methods: Methods) -> bool:
        """Whether a captured parameter is the weight of a linear map, whose gradients `Accumulator.add` sees."""
        return any(
            module.parameters.get("weight") == name
            and (module.contribution is linear or module.bare is not None)
            for module in methods.modules.values()
        )

    def __call__(self, batch: Batch) -> Gradients | None:
        """`[B, k]` of every parameter; None where the batch is not what the probe had seen and has several samples."""
        if self.alone and len(batch.indices) > 1:
            return None
        none = torch.empty(0)
        takers = {
            name: _Entries(none, positions=self.entries[name].to(self.selection[name].device))
            for name in self.methods.captured
        }
        trained = {name: self.selection[name] for name in self.methods.fallback}
        capture = Capture(self.methods.modules, dict(takers), layouts=self.methods.layouts)
        with frozen(self.stage.model, tuple(trained.values())), capture, capture.batch(batch, set()):
            losses = self.stage.forward(batch)
            called = [f"sample {i}" for i in batch.indices]
            if not bool(torch.isfinite(losses.detach()).all()):
                self.stage.check(self.stage.per_sample(losses, batch), called)
            objections = capture.objections()
            if objections:
                if len(batch.indices) > 1:
                    return None
                lost = {p for n in objections for p in self.methods.modules[n].parameters.values()}
                return self._by_autograd(batch, lost)
            self.stage.backward(losses, batch)
            gradients = {name: parameter.grad for name, parameter in trained.items()}
        found = {name: torch.cat(taker.found) if taker.found else None for name, taker in takers.items()}
        for name, gradient in gradients.items():
            found[name] = None if gradient is None else self._at(name, gradient)
        return self._filled(found, len(batch.indices))

    def _by_autograd(self, batch: Batch, lost: set[str]) -> Gradients:
        """One sample whose captured modules were not called as the probe saw it."""
        self.methods = self.methods.moved(dict.fromkeys(lost, "its module is not called as in the probe"))
        self.alone = True
        found = self(batch)
        assert found is not None
        return found

    def _at(self, name: str, gradient: Tensor) -> Tensor:
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        return gradient.reshape(-1)[self.entries[name].to(gradient.device)].float()[None]

    def _filled(self, found: Mapping[str, Tensor | None], rows: int) -> Gradients:
        """In the order of the entries, on the CPU; what no gradient reached is 0."""
        filled = {}
        for name, index in self.entries.items():
            values = found.get(name)
            filled[name] = torch.zeros(rows, index.numel()) if values is None else values.cpu()
        return filled
