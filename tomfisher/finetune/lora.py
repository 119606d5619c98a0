"""LoRA with about as many trainable parameters as a mask has entries, for comparison (package peft)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.finetune.training import train
from tomfisher.runtime.gate import check_trainable
from tomfisher.runtime.structure import is_conv1d, is_linear
from tomfisher.runtime.torch_state import plain_torch, seeded
from tomfisher.sample import Sample

INSTALL = "pip install peft"


@dataclass(frozen=True)
class LoraPlan:
    """Which modules get adapters of which rank.

    Args:
        rank: r of every adapter; its two matrices hold r · (inputs + outputs) numbers.
        modules: full module names.
        trainable: number of trainable parameters of all adapters.
        budget: the number that was asked for; `trainable` is not above it.
    """

    rank: int
    modules: tuple[str, ...]
    trainable: int
    budget: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """The last parts of the modules' names, each once."""
        return tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in self.modules))

    def describe(self) -> str:
        """Rank, modules and counts in words."""
        per_kind = len(self.modules) // len(self.kinds)
        return (
            f"rank {self.rank} on {', '.join(self.kinds)} of {per_kind} layer(s): {self.trainable} parameters "
            f"for {self.budget} masked entries"
        )


def plan_lora(model: nn.Module, names: Iterable[str], budget: int) -> LoraPlan:
    """Choose rank and modules so that the number of trainable parameters comes nearest to a budget from below.

    All sets of module kinds (q_proj, down_proj, ...), in all layers or in some, evenly spaced, are tried, one rank
    for all; of equal counts the one with more layers, then more kinds, is taken.

    Args:
        model: the model.
        names: names of weights (such as those of a mask); the linear modules among their owners are candidates.
        budget: number of trainable parameters not to exceed.

    Returns:
        The plan.

    Raises:
        ValueError: no linear module is named, or the smallest adapter is above the budget.
    """
    costs = _costs(model, names)
    by_kind: dict[str, list[str]] = {}
    for name in costs:
        by_kind.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    if not by_kind:
        raise ValueError(
            "None of the mask's tensors belongs to a linear module, so LoRA has nothing to adapt."
        )
    best: tuple[tuple[int, int, int], LoraPlan] | None = None
    for size in range(1, len(by_kind) + 1):
        for kinds in itertools.combinations(by_kind, size):
            for layers in range(1, max(len(by_kind[kind]) for kind in kinds) + 1):
                modules = [name for kind in kinds for name in _spaced(by_kind[kind], layers)]
                cost = sum(costs[name] for name in modules)
                rank = min(budget // cost, min(_full_rank(model, name) for name in modules))
                order = (rank * cost, layers, size)
                if rank and (best is None or order > best[0]):
                    best = order, LoraPlan(rank, tuple(modules), rank * cost, budget)
    if best is None:
        raise ValueError(
            f"The smallest LoRA, rank 1 on one module, has {min(costs.values())} parameters, more than the {budget} "
            "of the mask: there is none to compare with. Use a larger kappa, or leave LoRA out."
        )
    return best[1]


def _costs(model: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Inputs + outputs of every linear module that owns one of the weights."""
    modules = dict(model.named_modules())
    owners = dict.fromkeys(name.removesuffix(".weight") for name in names if name.endswith(".weight"))
    return {
        name: sum(modules[name].weight.shape)
        for name in owners
        if name in modules and is_linear(modules[name])
    }


def _full_rank(model: nn.Module, name: str) -> int:
    weight = model.get_parameter(f"{name}.weight")
    return min(weight.shape)


def _spaced(names: list[str], count: int) -> list[str]:
    """`count` of the names (all, if there are fewer), evenly spaced in the order of their layer numbers."""
    ordered = sorted(names, key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])
    if count >= len(ordered):
        return ordered
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


class TunedLora:
    """Trained adapters in a model; as a context manager they are taken out at the end of the block.

    Attributes:
        plan: rank and modules.
        losses: loss of every step before it was taken, in nats.
        trainable: number of trained parameters.
    """

    def __init__(self, model: nn.Module, plan: LoraPlan, seed: int) -> None:
        self.plan = plan
        self.losses: list[float] = []
        self._model = model
        self._seed = seed
        self._tuner: Any = None
        self._trained: list[Tensor] = []
        self._inject()
        self.trainable = sum(parameter.numel() for parameter in self.parameters())

    def _inject(self) -> None:
        peft = require_peft()
        config = peft.LoraConfig(
            r=self.plan.rank,
            lora_alpha=2 * self.plan.rank,
            target_modules=list(self.plan.modules),
            lora_dropout=0.0,
            bias="none",
            fan_in_fan_out=any(is_conv1d(self._model.get_submodule(name)) for name in self.plan.modules),
        )
        self._required = {p: p.requires_grad for p in self._model.parameters()}
        with seeded(self._seed):
            self._tuner = peft.LoraModel(self._model, config, "default")

    def parameters(self) -> list[nn.Parameter]:
        """The adapters' matrices."""
        return [p for name, p in self._model.named_parameters() if ".lora_" in name]

    def undo(self) -> None:
        """Take the adapters out; the model's own weights were never touched.

        Raises:
            RuntimeError: they were taken out already.
        """
        if self._tuner is None:
            raise RuntimeError("The adapters cannot be taken out twice.")
        self._trained = [parameter.detach().clone() for parameter in self.parameters()]
        self._tuner.unload()
        self._tuner = None
        if hasattr(self._model, "peft_config"):
            del self._model.peft_config
        for parameter, flag in self._required.items():
            parameter.requires_grad_(flag)

    def reapply(self) -> None:
        """Put the trained adapters back in, after `undo`."""
        if self._tuner is not None:
            raise RuntimeError("The adapters are in the model already. Call undo() first.")
        self._inject()
        with torch.no_grad():
            for parameter, values in zip(self.parameters(), self._trained, strict=True):
                parameter.copy_(values)

    def __enter__(self) -> TunedLora:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._tuner is not None:
            self.undo()


@plain_torch()
def finetune_lora(
    model: nn.Module,
    plan: LoraPlan,
    samples: Sequence[Sample],
    steps: int = 100,
    learning_rate: float = 1e-3,
    batch_size: int = 8,
    weight_decay: float = 0.0,
    seed: int = 0,
    label: str = "lora",
    progress: bool = True,
) -> TunedLora:
    """Train low-rank adapters with the same loop, data and optimiser as `finetune_masked`.

    W x becomes W x + 2 · B A x, A `[r, inputs]` drawn at random and B `[outputs, r]` zero at first (lora_alpha is
    twice the rank, no dropout).

    Args:
        model: a transformers causal language model; adapters are put into it.
        plan: rank and modules (`plan_lora`).
        samples: training data (`tomfisher.encode`).
        steps: optimiser steps.
        learning_rate: of AdamW, constant.
        batch_size: samples per step.
        weight_decay: AdamW's decoupled decay.
        seed: of the order of the samples, and of A.
        label: in front of the progress bar.
        progress: show a bar on a terminal.

    Returns:
        The adapters, in the model; `undo()` takes them out.

    Raises:
        FloatingPointError: the training diverged. The adapters are out.
        ModuleNotFoundError: peft is not installed.
        ValueError: no samples, or a setting out of range.
    """
    check_trainable(model, "Fine-tuning")
    tuned = TunedLora(model, plan, seed)
    try:
        values = tuned.parameters()
        tuned.losses = train(
            *(model, samples, values, values, steps, learning_rate, batch_size, weight_decay, seed),
            label=label,
            progress=progress,
        )
    except BaseException:
        tuned.undo()
        raise
    return tuned


def require_peft() -> Any:
    """The package peft.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"The comparison with LoRA needs the package peft. Install it: {INSTALL}. Or leave LoRA out."
        ) from error
    return peft
