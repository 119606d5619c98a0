"""Sums of gradients and norms of inputs: what other criteria than the Fisher diagonal rank weights by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.fisher.objective import Labels, Reduction
from tomfisher.fisher.selection import Params, select_parameters
from tomfisher.fisher.stage import WholeModel
from tomfisher.progress import progress_bar
from tomfisher.runtime.batches import Batch
from tomfisher.runtime.device import device_of
from tomfisher.runtime.gate import check_samples, check_trainable
from tomfisher.runtime.memory import is_out_of_memory, release, token_budget
from tomfisher.runtime.modes import frozen
from tomfisher.runtime.rules import check_rules
from tomfisher.runtime.structure import is_conv1d, is_linear, layer_pattern, owners_of
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.sample import Sample

GRADIENT, INPUT_NORM = "gradient", "input_norm"
SHOWN = 4


@dataclass(frozen=True)
class FirstMoments:
    """What one pass over some samples says about the weights besides the Fisher diagonal.

    Attributes:
        gradient: Σ_n ∂ℓ_n/∂θ, float32, by parameter name; empty where it was not asked for.
        input_norm: root of Σ x² over all tokens of the input x_j that each column of a weight multiplies, float32,
            `[1, d_in]` for `nn.Linear`, `[d_in, 1]` for `Conv1D`; empty where it was not asked for.
        num_samples: samples in the sums.
    """

    gradient: dict[str, Tensor]
    input_norm: dict[str, Tensor]
    num_samples: int


class _Inputs:
    """Sums the squares of the inputs of linear modules while it listens."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.total: dict[str, Tensor] = {}
        self._batch: dict[str, Tensor] = {}
        self._listening = False

    @contextmanager
    def hooked(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in self.modules.items():
                stack.callback(module.register_forward_pre_hook(self._take(name)).remove)
            yield

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Of one forward: what it shows counts when it ends well; recomputed layers of its backward do not."""
        self._batch, self._listening = {}, True
        try:
            yield
        finally:
            self._listening = False

    def keep(self) -> None:
        """Add what the last batch showed."""
        for name, squares in self._batch.items():
            self.total[name] = self.total[name] + squares if name in self.total else squares

    def _take(self, name: str) -> Callable[[nn.Module, Any], None]:
        def take(module: nn.Module, args: Any) -> None:
            if self._listening:
                squares = args[0].detach().flatten(0, -2).double().square().sum(0)
                self._batch[name] = self._batch[name] + squares if name in self._batch else squares

        return take

    def norms(self) -> dict[str, Tensor]:
        return {
            name: self.total[name].sqrt().float()[:, None]
            if is_conv1d(module)
            else self.total[name].sqrt().float()[None]
            for name, module in self.modules.items()
        }


@plain_torch()
def first_moments(
    model: nn.Module,
    samples: Sequence[Sample],
    params: Params = "decoder-linear",
    what: Sequence[str] = (GRADIENT, INPUT_NORM),
    labels: Labels = "empirical",
    reduction: Reduction = "mean",
    tokens_per_batch: int | str = "auto",
    progress: bool = True,
    seed: int = 0,
) -> FirstMoments:
    """Sum of the per-sample gradients, and norms of the inputs of linear layers, in one pass over the samples.

    The losses are those of `tomfisher.fisher_diagonal`. Batches hold samples of one length, so that no padding counts.
    Equivalent PyTorch, for `nn.Linear`::

        sum(loss(model, sample) for sample in samples).backward()
        gradient = {name: parameter.grad for name, parameter in selected}
        input_norm = {name: x.flatten(0, -2).square().sum(0).sqrt()[None] for name, x in inputs_of_all_samples}

    Args:
        model: a transformers causal language model.
        samples: at least one.
        params: which weights, see `tomfisher.fisher_diagonal`.
        what: "gradient", "input_norm" or both; without gradients nothing goes backwards.
        labels: see there, as the rest.
        reduction: over the tokens of one sample.
        tokens_per_batch: `B * T` of a batch, or "auto".
        progress: show a bar on a terminal.
        seed: of sampled labels.

    Returns:
        `FirstMoments`.

    Raises:
        ValueError: there are no samples; or "input_norm" is asked for and a weight is not that of a linear module
            which the model calls (fused experts, weights that are read directly).
        FloatingPointError: a loss is not finite.
    """
    if not samples:
        raise ValueError("samples is empty: first_moments needs at least one Sample.")
    check_trainable(model, "A gradient")
    check_samples(model, list(samples))
    selection = select_parameters(model, params)
    inputs = _Inputs(_modules(model, selection) if INPUT_NORM in what else {})
    budget = token_budget(tokens_per_batch, model, device_of(model))
    rules = check_rules(model, [sample.input_ids for sample in samples], tokens=budget)
    stage = WholeModel(model, rules, labels, reduction, seed)
    trained = tuple(selection.values()) if GRADIENT in what else ()
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in selection.items() if trained}
    pending = [
        group for group in _of_one_length(samples) for group in stage.plan(samples, group, budget, None)
    ]
    shown = progress_bar(total=sum(map(len, samples)), desc="gradients", unit="token", enabled=progress)
    with frozen(model, trained), inputs.hooked(), shown as bar, torch.set_grad_enabled(bool(trained)):
        while pending:
            indices = pending.pop()
            batch = stage.batch(samples, indices)
            try:
                gradients = _one_batch(stage, batch, trained, inputs)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(indices) == 1:
                    raise
                gradients = None
            if gradients is None:
                release()
                middle = len(indices) // 2
                pending += [indices[middle:], indices[:middle]]
                continue
            inputs.keep()
            for sums, gradient in zip(total.values(), gradients, strict=True):
                if gradient is not None:
                    sums.add_(gradient)
            bar.update(batch.num_tokens)
    _check_called(model, inputs)
    return FirstMoments(total, inputs.norms(), len(samples))


def _one_batch(
    stage: WholeModel, batch: Batch, trained: tuple[nn.Parameter, ...], inputs: _Inputs
) -> Sequence[Tensor | None]:
    with inputs.batch():
        losses = stage.forward(batch)
    if not bool(torch.isfinite(losses.detach()).all()):
        stage.check(stage.per_sample(losses, batch), [f"sample {i}" for i in batch.indices])
    return torch.autograd.grad(losses.sum(), trained, allow_unused=True) if trained else ()


def _of_one_length(samples: Sequence[Sample]) -> list[list[int]]:
    lengths: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        lengths.setdefault(len(sample), []).append(index)
    return list(lengths.values())


def _modules(model: nn.Module, selection: dict[str, nn.Parameter]) -> dict[str, nn.Module]:
    """The linear module of every weight."""
    owners, found = owners_of(model), {}
    for name, parameter in selection.items():
        for owner in owners[id(parameter)]:
            if is_linear(owner.module) and owner.attribute == "weight":
                found[name] = owner.module
    if missing := [name for name in selection if name not in found]:
        raise ValueError(_no_input(model, missing, "are not the weight of a linear module"))
    return found


def _check_called(model: nn.Module, inputs: _Inputs) -> None:
    if missing := [name for name in inputs.modules if name not in inputs.total]:
        raise ValueError(_no_input(model, missing, "belong to modules that were never called"))


def _no_input(model: nn.Module, names: Sequence[str], why: str) -> str:
    kinds = list(dict.fromkeys(map(layer_pattern, names)))
    more = f" and {len(kinds) - SHOWN} more kinds" if len(kinds) > SHOWN else ""
    return (
        f"The inputs of some weights of this {type(model).__name__} cannot be seen: {', '.join(kinds[:SHOWN])}{more} "
        f"{why}. Leave them out with params, or take a criterion that needs no activations."
    )
