"""What the Fisher diagonal misses of a mask: how far its weights act together, without a `[k, k]` matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tomfisher.analysis.low_rank import effective_rank
from tomfisher.evaluate.statistics import NORMAL_975
from tomfisher.fisher.entry_gradients import entry_gradients
from tomfisher.fisher.objective import Labels, Reduction, drawn_labels
from tomfisher.fisher.stage import WholeModel
from tomfisher.masks import SparseMask
from tomfisher.perturbation import perturb
from tomfisher.perturbation.fill import FillLike
from tomfisher.progress import progress_bar
from tomfisher.runtime.device import device_of
from tomfisher.runtime.gate import check_samples, check_trainable
from tomfisher.runtime.memory import token_budget
from tomfisher.runtime.modes import measuring
from tomfisher.runtime.rules import check_rules
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.sample import Sample

SPECTRUM_LIMIT = 20_000
DRAWS = 2_000
LEADING = 8


@dataclass(frozen=True)
class Estimate:
    """A mean over samples and its 95 % interval."""

    mean: float
    low: float
    high: float

    def to_dict(self) -> list[float]:
        """`[mean, low, high]`."""
        return [self.mean, self.low, self.high]


@dataclass(frozen=True)
class Interaction:
    """How the loss changes by a mask, in theory and as measured, sample by sample.

    With g_n the gradient of ℓ_n at the masked entries and δ what the fill adds to them; all in nats.

    Attributes:
        nnz: number of masked entries, k.
        first: `[N]` float64, g_n · δ.
        diagonal: `[N]` float64, ½ Σ_i g_{n,i}² δ_i²; its sum over the samples is ½ Σ_i F_i δ_i².
        joint: `[N]` float64, ½ (g_n · δ)²; its sum is ½ δᵀ (Σ_n g_n g_nᵀ) δ, the whole block.
        measured: `[N]` float64, ℓ_n under the mask minus ℓ_n.
        eigenvalues: float64, descending, those of the block Σ_n g_n g_nᵀ that are not zero, from the Gram matrix
            `[N, N]` of the g_n; None where there are too many entries.
    """

    nnz: int
    first: Tensor
    diagonal: Tensor
    joint: Tensor
    measured: Tensor
    eigenvalues: Tensor | None

    @property
    def ratio(self) -> Estimate:
        """Σ joint / Σ diagonal, and its 95 % interval: percentiles of 2,000 draws of samples with replacement.

        1 where the weights act on their own, more where they act together, less where they cancel; at most k, where all
        push every sample in the same direction. NaN where the diagonal is 0.
        """
        return _ratio(self.joint.numpy(), self.diagonal.numpy())

    @property
    def effective_rank(self) -> float | None:
        """Exp of the entropy of the block's normalised eigenvalues (`tomfisher.analysis.effective_rank`)."""
        return None if self.eigenvalues is None else effective_rank(self.eigenvalues)

    def summary(self) -> dict[str, Estimate]:
        """Means over the samples with 95 % intervals (normal), and the ratio."""
        parts = {name: _mean(getattr(self, name)) for name in ("first", "diagonal", "joint", "measured")}
        return {**parts, "ratio": self.ratio}

    def to_dict(self) -> dict[str, Any]:
        """Numbers of entries and samples, the summary, and of the spectrum the rank and leading eigenvalues."""
        spectrum = None
        if self.eigenvalues is not None:
            spectrum = {
                "rank": len(self.eigenvalues),
                "effective_rank": self.effective_rank,
                "leading": self.eigenvalues[:LEADING].tolist(),
                "trace": float(self.eigenvalues.sum()),
            }
        summary = {name: estimate.to_dict() for name, estimate in self.summary().items()}
        return {"nnz": self.nnz, "samples": len(self.first), **summary, "spectrum": spectrum}


def interaction(
    model: nn.Module,
    samples: Sequence[Sample],
    mask: SparseMask,
    fill: FillLike = "mean",
    seed: int = 0,
    compat: str | None = None,
    labels: Labels = "empirical",
    reduction: Reduction = "mean",
    tokens_per_batch: int | str = "auto",
    spectrum_limit: int = SPECTRUM_LIMIT,
    progress: bool = True,
) -> Interaction:
    """First order, diagonal and joint second order of a mask's change of the loss, and the change as measured.

    See `interactions`, which does several masks in one pass; arguments, returns and errors are its.
    """
    found = interactions(
        model,
        samples,
        {"mask": mask},
        fill,
        seed,
        compat,
        labels,
        reduction,
        tokens_per_batch,
        spectrum_limit,
        progress,
    )
    return found["mask"]


@plain_torch()
def interactions(
    model: nn.Module,
    samples: Sequence[Sample],
    masks: Mapping[str, SparseMask],
    fill: FillLike = "mean",
    seed: int = 0,
    compat: str | None = None,
    labels: Labels = "empirical",
    reduction: Reduction = "mean",
    tokens_per_batch: int | str = "auto",
    spectrum_limit: int = SPECTRUM_LIMIT,
    progress: bool = True,
) -> dict[str, Interaction]:
    """`interaction` of several masks of one model: a pass with gradients and one without for all, one without for each.

    For a masked set S, δ = filled - weight on S and g_n = ∂ℓ_n/∂θ_S, Taylor's expansion with the Gauss-Newton
    (empirical Fisher) block in place of the Hessian says that ℓ_n changes by g_n·δ + ½ (g_n·δ)². The method's own
    measure, the Fisher diagonal, keeps ½ Σ_i g_{n,i}² δ_i² of the second term. Memory is samples times entries for
    masks whose spectrum is taken, samples alone for the others. Equivalent PyTorch, for one sample::

        g = torch.autograd.grad(loss(model, sample), theta)[0][index]
        first, diagonal, joint = g @ delta, (g * delta).square().sum() / 2, (g @ delta) ** 2 / 2

    Args:
        model: a transformers causal language model; its weights are as before afterwards, to the bit.
        samples: at least one; the task's, or the control's.
        masks: by name.
        fill: what is written to the masked entries, see `tomfisher.perturb`.
        seed: of noise and of sampled labels.
        compat: see `tomfisher.perturb`.
        labels: see `tomfisher.fisher_diagonal`; "sampled" ones are drawn once, of the model without a mask (a further
            pass), so that all losses of a sample are of the same labels.
        reduction: over the tokens of one sample.
        tokens_per_batch: `B * T` of a batch, or "auto".
        spectrum_limit: the block's eigenvalues are taken of masks with at most so many entries.
        progress: show bars on a terminal.

    Returns:
        The `Interaction` of every mask.

    Raises:
        ValueError: there are no samples, or a mask is of another model.
        FloatingPointError: a loss is not finite.
    """
    chosen = list(samples)
    if not chosen:
        raise ValueError("samples is empty: an interaction is a mean over at least one Sample.")
    check_trainable(model, "An interaction")
    check_samples(model, chosen)
    budget = token_budget(tokens_per_batch, model, device_of(model))
    rules = check_rules(model, [sample.input_ids for sample in chosen], tokens=budget)
    stage = WholeModel(model, rules, "empirical", reduction, seed)
    if labels == "sampled":
        chosen = _with_drawn_labels(stage, chosen, budget)
    before = _losses(stage, chosen, budget)
    collectors = {}
    for name in progress_bar(list(masks), desc="loss", unit="mask", enabled=progress):
        mask = masks[name]
        old = _values(model, mask)
        with perturb(model, mask, fill=fill, seed=seed, compat=compat):
            delta = {n: value - old[n] for n, value in _values(model, mask).items()}
            measured = _losses(stage, chosen, budget) - before
        collectors[name] = _Collector(mask, delta, measured, spectrum_limit)
    union = {name: index for name, index in _union(masks.values()).items() if index.numel()}
    batches: Iterator[tuple[list[int], dict[str, Tensor]]] = entry_gradients(
        model, chosen, union, "empirical", reduction, tokens_per_batch, progress, seed
    )
    for indices, gradients in batches if union else ():
        for collector in collectors.values():
            collector.add(indices, gradients, union)
    return {name: collector.result() for name, collector in collectors.items()}


class _Collector:
    """Sums up one mask's gradients.

    Args:
        mask: the entries.
        delta: what the fill adds to each, float64, by tensor.
        measured: `[N]`, the change of every sample's loss.
        limit: of the entries whose gradients are kept.
    """

    def __init__(self, mask: SparseMask, delta: dict[str, Tensor], measured: Tensor, limit: int) -> None:
        self.mask, self.delta, self.measured = mask, delta, measured
        self.first, self.diagonal = torch.zeros_like(measured), torch.zeros_like(measured)
        self.kept = torch.zeros(len(measured), mask.nnz) if mask.nnz <= limit else None

    def add(self, indices: list[int], gradients: Mapping[str, Tensor], union: Mapping[str, Tensor]) -> None:
        """Take in a batch."""
        rows, start = torch.tensor(indices), 0
        for name, delta in self.delta.items():
            if not delta.numel():
                continue
            g = gradients[name][:, torch.searchsorted(union[name], self.mask[name])]
            change = g.double() * delta
            self.first[rows] += change.sum(1)
            self.diagonal[rows] += change.square().sum(1) / 2
            if self.kept is not None:
                self.kept[rows, start : start + g.shape[1]] = g
            start += g.shape[1]

    def result(self) -> Interaction:
        eigenvalues = None if self.kept is None else gram_eigenvalues(self.kept)
        joint = self.first.square() / 2
        return Interaction(self.mask.nnz, self.first, self.diagonal, joint, self.measured, eigenvalues)


def gram_eigenvalues(gradients: Tensor) -> Tensor:
    """The eigenvalues of Σ_n g_n g_nᵀ that are not zero, descending, from that matrix or the Gram matrix g_n · g_m.

    Both have the same ones; the smaller of the two is taken.

    Args:
        gradients: `[N, k]`, a row per sample.

    Returns:
        float64, at most min(N, k); what is at most the float64 machine epsilon times max(N, k) times the largest counts
        as zero.
    """
    G = gradients.double()
    found = torch.linalg.eigvalsh(G @ G.T if G.shape[0] <= G.shape[1] else G.T @ G).flip(0)
    least = torch.finfo(torch.float64).eps * max(G.shape) * found[:1].sum()
    return found[found > least]


def _with_drawn_labels(stage: WholeModel, samples: Sequence[Sample], budget: int) -> list[Sample]:
    """The samples with labels that the model as it is now predicts."""
    drawn = list(samples)
    with measuring(stage.model):
        for indices in stage.plan(samples, range(len(samples)), budget, None):
            labels = drawn_labels(stage.model, stage.batch(samples, indices), stage.seed)
            for index, row in zip(indices, labels, strict=True):
                drawn[index] = replace(samples[index], labels=row[: len(samples[index])].clone())
    return drawn


def _losses(stage: WholeModel, samples: Sequence[Sample], budget: int) -> Tensor:
    """Every sample's loss as the model is now, float64."""
    losses = torch.zeros(len(samples), dtype=torch.float64)
    with measuring(stage.model):
        for indices in stage.plan(samples, range(len(samples)), budget, None):
            batch = stage.batch(samples, indices)
            found = stage.forward(batch)
            stage.check(stage.per_sample(found, batch), [f"sample {i}" for i in indices])
            losses[torch.tensor(indices)] = found.double().cpu()
    return losses


def _values(model: nn.Module, mask: SparseMask) -> dict[str, Tensor]:
    """The masked weights, float64."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: parameters[name].detach().reshape(-1)[index.to(parameters[name].device)].double().cpu()
        for name, index in mask.items()
        if name in parameters
    }


def _union(masks: Sequence[SparseMask] | Any) -> dict[str, Tensor]:
    """Every entry of any of the masks, sorted, by tensor."""
    parts: dict[str, list[Tensor]] = {}
    for mask in masks:
        for name, index in mask.items():
            parts.setdefault(name, []).append(index)
    return {name: torch.cat(indices).unique(sorted=True) for name, indices in parts.items()}


def _mean(values: Tensor) -> Estimate:
    mean, n = float(values.mean()), len(values)
    half = NORMAL_975 * float(values.std()) / n**0.5 if n > 1 else float("nan")
    return Estimate(mean, mean - half, mean + half)


def _ratio(joint: np.ndarray, diagonal: np.ndarray) -> Estimate:
    if not diagonal.sum():
        return Estimate(float("nan"), float("nan"), float("nan"))
    drawn = np.random.default_rng(0).integers(len(joint), size=(DRAWS, len(joint)))
    below = diagonal[drawn].sum(1)
    ratios = joint[drawn].sum(1)[below > 0] / below[below > 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Estimate(float(joint.sum() / diagonal.sum()), float(low), float(high))
