"""The loss whose gradient is squared: negative log-likelihood of each sample's supervised tokens, in nats."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tomfisher.fisher.nll import negative_log_likelihood
from tomfisher.runtime.batches import Batch
from tomfisher.runtime.device import device_of, to_device
from tomfisher.runtime.forward import logits_at
from tomfisher.runtime.gate import why_not_finite
from tomfisher.sample import IGNORED

Labels = Literal["empirical", "sampled"]
Reduction = Literal["mean", "sum"]


def sample_losses(model: nn.Module, batch: Batch, labels: Labels, reduction: Reduction, seed: int) -> Tensor:
    """One loss per sample of a batch.

    `loss[n] = Σ_t -log p(y[t] | x[<t])` over the supervised t of sample n, divided by their number for
    reduction "mean". Logits are computed only at positions that some sample of the batch supervises.

    Args:
        model: a transformers causal language model.
        batch: B padded samples.
        labels: "empirical" takes y from the labels; "sampled" draws y from the model's own prediction.
        reduction: over the tokens of one sample; samples are never averaged.
        seed: for "sampled"; the draw depends on the seed and the sample's index alone, not on the batch.

    Returns:
        float32 (float64 for a float64 model), shape `[B]`, in nats.
    """
    device = device_of(model)
    targets, positions = _supervised(batch.labels)
    logits = logits_at(model, to_device(batch.input_ids, device), to_device(positions, device))
    aims = to_device(targets, logits.device)
    if labels == "sampled":
        aims = _draw(logits.detach(), targets, aims, batch.indices, seed)
    total = negative_log_likelihood(logits.flatten(0, 1), aims.flatten()).view(targets.shape).sum(1)
    if reduction == "sum":
        return total
    return total / (aims != IGNORED).sum(1).to(total)


def drawn_labels(model: nn.Module, batch: Batch, seed: int) -> Tensor:
    """The labels of which `sample_losses` takes the loss with labels="sampled", drawn from the model as it is now.

    Args:
        model: a transformers causal language model.
        batch: B padded samples.
        seed: see `sample_losses`.

    Returns:
        int64 `[B, T]` on the CPU: the batch's labels, with the supervised ones replaced.
    """
    device = device_of(model)
    targets, positions = _supervised(batch.labels)
    with torch.no_grad():
        logits = logits_at(model, to_device(batch.input_ids, device), to_device(positions, device))
    labels = batch.labels.clone()
    labels[:, positions + 1] = _draw(
        logits, targets, to_device(targets, logits.device), batch.indices, seed
    ).cpu()
    return labels


def backward(losses: Tensor) -> None:
    """Gradients of every sample's loss; none where nothing that requires a gradient has a part in it."""
    if losses.requires_grad:
        losses.sum().backward()


def check_losses(model: nn.Module, losses: Tensor, called: list[str]) -> None:
    """Stop at a loss that is NaN or infinite, naming the sample and, if there is one, the broken weight.

    Args:
        model: whose weights are looked at when a loss is bad.
        losses: `[B]`, from `sample_losses`.
        called: what to call each sample.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    finite = torch.isfinite(losses.detach())
    if bool(finite.all()):
        return
    row = int((~finite).nonzero()[0])
    raise FloatingPointError(f"The loss of {called[row]} is {losses[row].item()}. {why_not_finite(model)}")


def _supervised(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Targets `[B, K]` and the K positions that predict them, where any sample is supervised."""
    shifted = labels[:, 1:]
    positions = (shifted != IGNORED).any(0).nonzero().squeeze(1)
    return shifted[:, positions], positions


def _draw(logits: Tensor, targets: Tensor, aims: Tensor, indices: list[int], seed: int) -> Tensor:
    """Replace supervised targets by inverse-CDF draws from softmax(logits).

    Args:
        logits: `[B, K, V]`.
        targets: `[B, K]` on the host.
        aims: the same where the logits are.
        indices: of the samples.
        seed: a draw is a function of it and the sample's index.
    """
    uniform = torch.zeros(targets.shape, dtype=torch.float64)
    for row, index in enumerate(indices):
        supervised = targets[row] != IGNORED
        generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
        uniform[row, supervised] = torch.rand(int(supervised.sum()), generator=generator, dtype=torch.float64)
    uniform = to_device(uniform, logits.device)
    drawn = []
    for row in range(len(indices)):  # one at a time: the cumulative sums are float64
        cumulative = logits[row].double().softmax(-1).cumsum(-1)
        choice = torch.searchsorted(cumulative, uniform[row, :, None] * cumulative[:, -1:]).squeeze(1)
        drawn.append(choice.clamp_max(logits.shape[-1] - 1))
    return torch.where(aims == IGNORED, aims, torch.stack(drawn))
