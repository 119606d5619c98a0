"""The training loop that masked entries and LoRA share: the same data in the same order, one loss."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import torch
from torch import nn

from tomfisher.fisher.objective import check_losses, sample_losses
from tomfisher.progress import progress_bar
from tomfisher.runtime.batches import collate
from tomfisher.runtime.gate import check_samples
from tomfisher.runtime.modes import frozen, measuring
from tomfisher.runtime.rules import Rules, check_rules, weights_kept
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.sample import Sample

VALIDATION_TOKENS = 2048


@plain_torch()
def train(
    model: nn.Module,
    samples: Sequence[Sample],
    values: Sequence[nn.Parameter],
    weights: Sequence[nn.Parameter],
    steps: int,
    learning_rate: float,
    batch_size: int = 8,
    weight_decay: float = 0.0,
    seed: int = 0,
    after_step: Callable[[], None] | None = None,
    label: str = "finetune",
    progress: bool = True,
) -> list[float]:
    """Minimise the mean over a batch's samples of each sample's mean token loss, with AdamW, for a number of steps.

    Args:
        model: everything in it but `weights` is frozen meanwhile.
        samples: training data.
        values: what is trained.
        weights: the parameters of the model through which gradients come to `values`; often the same.
        steps: optimiser steps.
        learning_rate: of AdamW (betas 0.9 and 0.999, eps 1e-8), constant.
        batch_size: samples per step.
        weight_decay: AdamW's decoupled decay, toward zero.
        seed: of the order of the samples, which is reshuffled whenever all were seen.
        after_step: called after every step of the optimiser.
        label: in front of the progress bar.
        progress: show a bar on a terminal.

    Returns:
        The loss of every step before it was taken, in nats.

    Raises:
        FloatingPointError: a loss or a gradient is NaN or infinite; the step and the sample are named.
        ValueError: no samples, a setting out of range, or a model that breaks a rule that a likelihood rests on
            (`tomfisher.runtime.rules`).
    """
    _check(samples, steps, batch_size)
    check_learning_rate(learning_rate)
    check_samples(model, samples)
    optimizer = torch.optim.AdamW(values, lr=learning_rate, weight_decay=weight_decay)
    losses: list[float] = []
    with (
        frozen(model, tuple(weights)),
        progress_bar(total=steps, desc=label, unit="step", enabled=progress) as bar,
    ):
        rules = check_rules(model, [sample.input_ids for sample in samples], batch_size)
        for step, chosen in enumerate(batch_order(len(samples), batch_size, steps, seed), 1):
            optimizer.zero_grad(set_to_none=True)
            loss = 0.0
            for part in _parts(samples, chosen, rules):
                each = sample_losses(model, collate(samples, part), "empirical", "mean", seed)
                names = [samples[i].called(f"sample {i}") for i in part]
                try:
                    check_losses(model, each, names)
                except FloatingPointError as error:
                    raise FloatingPointError(
                        f"Training diverged at step {step} of {steps}. {error}"
                    ) from error
                mean = each.sum() / len(chosen)
                mean.backward()
                loss += mean.item()
            _check_gradients(values, step, steps)
            optimizer.step()
            if after_step is not None:
                after_step()
            losses.append(loss)
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            bar.update(1)
    optimizer.zero_grad(set_to_none=True)
    return losses


def batch_order(count: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Indices of the samples of every step: a new shuffle of all samples whenever one is used up.

    Args:
        count: number of samples.
        batch_size: samples per step.
        steps: number of steps.
        seed: any integer.

    Returns:
        `steps` lists of `batch_size` indices; a pure function of the arguments.
    """
    choose = random.Random(f"tomfisher.finetune:{seed}")
    line: list[int] = []
    while len(line) < steps * batch_size:
        line += choose.sample(range(count), count)
    return [line[step * batch_size : (step + 1) * batch_size] for step in range(steps)]


@plain_torch()
def mean_loss(model: nn.Module, samples: Sequence[Sample]) -> float:
    """Mean over the samples of each sample's mean token loss, in nats; infinite or NaN if the model is broken."""
    check_samples(model, samples)
    total = 0.0
    lengths = [len(sample) for sample in samples]
    rules = check_rules(model, [sample.input_ids for sample in samples], tokens=VALIDATION_TOKENS)
    with weights_kept(model), measuring(model):
        for chosen in rules.plan(lengths, VALIDATION_TOKENS):
            batch = collate(samples, chosen)
            total += float(sample_losses(model, batch, "empirical", "mean", 0).double().sum())
    return total / len(samples)


def _parts(samples: Sequence[Sample], chosen: list[int], rules: Rules) -> list[list[int]]:
    """The samples of a step in the forwards that the model's rules allow: one, if they may be padded."""
    if rules.padded:
        return [chosen]
    return [[chosen[i] for i in part] for part in rules.plan([len(samples[i]) for i in chosen])]


def _check(samples: Sequence[Sample], steps: int, batch_size: int) -> None:
    if not samples:
        raise ValueError("There are no samples to train on. Pass at least one.")
    check_counts(steps, batch_size)


def check_counts(steps: int, batch_size: int) -> None:
    """Refuse a training without steps, or steps without samples.

    Raises:
        ValueError: one of the counts is below 1.
    """
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}.")


def check_learning_rate(learning_rate: float) -> None:
    """Refuse a learning rate that is not a positive finite number.

    Raises:
        ValueError: it is not.
    """
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate must be a positive number such as 1e-3, got {learning_rate!r}.")


def _check_gradients(values: Sequence[nn.Parameter], step: int, steps: int) -> None:
    if not all(value.grad is None or bool(value.grad.isfinite().all()) for value in values):
        raise FloatingPointError(
            f"Training diverged at step {step} of {steps}: the loss is finite, but a gradient holds NaN or "
            "infinity. Use a smaller learning rate, or load the model in float32."
        )
