"""`finetune_masked`: train the masked entries, leave every other bit of the model alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tomfisher.finetune.delta import AppliedDelta, Delta
from tomfisher.finetune.entries import Entry, find_entries, gathered_gradients, master_values, write
from tomfisher.finetune.training import train
from tomfisher.masks import SparseMask
from tomfisher.ops.dispatch import Impl
from tomfisher.perturbation.guard import deferred_interrupt
from tomfisher.runtime.gate import check_trainable
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.sample import Sample


class TunedEntries(AppliedDelta):
    """Masked entries that were trained and stand in the model; as a context manager it is undone at the end.

    Attributes:
        delta: the entries with their old and new values; `delta.save(path)` writes them to a small file.
        losses: loss of every step before it was taken, in nats.
        trainable: number of trained values k.
    """

    def __init__(self, model: nn.Module, delta: Delta, impl: Impl, losses: list[float]) -> None:
        super().__init__(model, delta, impl)
        self.losses = losses
        self.trainable = delta.nnz


@plain_torch()
def finetune_masked(
    model: nn.Module,
    mask: SparseMask,
    samples: Sequence[Sample],
    steps: int = 100,
    learning_rate: float = 1e-3,
    batch_size: int = 8,
    weight_decay: float = 0.0,
    seed: int = 0,
    label: str = "finetune",
    progress: bool = True,
    impl: Impl = "auto",
) -> TunedEntries:
    """Train only the masked entries of a model with AdamW; everything else stays as it was, bit for bit.

    The same as a dense AdamW whose update is multiplied by the mask, with an optimiser state of the size of the
    mask: the k entries live in float32 vectors (float64 for float64 weights), `backward` reads their gradients off
    each weight's dense gradient and frees it at once, and every step writes the vectors, rounded to the weight's
    dtype, into the model. Evaluation mode (no dropout); weights that share memory are trained once.

    Example::

        with finetune_masked(model, mask, samples, steps=100) as tuned:   # undone at the end of the block
            scores = tomfisher.evaluate.score(model, tokenizer, stories)
            tuned.delta.save("delta.safetensors")

    Args:
        model: a transformers causal language model, changed in place.
        mask: the entries to train.
        samples: training data (`tomfisher.encode`).
        steps: optimiser steps.
        learning_rate: of AdamW (betas 0.9 and 0.999, eps 1e-8), constant.
        batch_size: samples per step; the loss is the mean of their mean token losses.
        weight_decay: AdamW's decoupled decay, toward zero.
        seed: of the order of the samples.
        label: in front of the progress bar.
        progress: show a bar on a terminal.
        impl: implementation of the write.

    Returns:
        The trained entries, in the model; `undo()` takes them out again.

    Raises:
        FloatingPointError: the training diverged. The weights are as they were before.
        TypeError: a masked weight cannot be trained (quantised, no floating-point numbers).
        ValueError: the mask is of another model or empty, no samples, or a setting out of range.
    """
    check_trainable(model, "Fine-tuning")
    entries = find_entries(model, mask)
    old = [entry.read() for entry in entries]
    values = master_values(entries)
    weights = [parameter for entry in entries for parameter in entry.parameters]

    def put() -> None:
        new = [_rounded(entry, value) for entry, value in zip(entries, values, strict=True)]
        write(entries, new, impl)

    try:
        with gathered_gradients(entries, values):
            losses = train(
                *(model, samples, values, weights, steps, learning_rate, batch_size, weight_decay, seed),
                after_step=put,
                label=label,
                progress=progress,
            )
        delta = Delta(
            shapes={entry.name: tuple(entry.weight.shape) for entry in entries},
            indices={entry.name: entry.index.cpu() for entry in entries},
            old={entry.name: values.cpu() for entry, values in zip(entries, old, strict=True)},
            new={entry.name: entry.read().cpu() for entry in entries},
            metadata={
                "training": {
                    "steps": steps,
                    "learning_rate": learning_rate,
                    "batch_size": batch_size,
                    "weight_decay": weight_decay,
                    "seed": seed,
                    "samples": len(samples),
                    "last_loss": losses[-1],
                },
                "mask": mask.describe(),
            },
        )
    finally:
        with deferred_interrupt():
            write(entries, old, impl)
    tuned = TunedEntries(model, delta, impl, losses)
    tuned.apply()
    return tuned


def _rounded(entry: Entry, value: nn.Parameter) -> Tensor:
    rounded = value.detach().to(entry.weight.dtype)
    if not bool(rounded.isfinite().all()):
        raise FloatingPointError(
            f"Training diverged: a value of {entry.name} is not finite in {entry.weight.dtype}. "
            "Use a smaller learning rate."
        )
    return rounded
