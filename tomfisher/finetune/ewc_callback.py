"""The EWC penalty in transformers' `Trainer`."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from tomfisher.finetune.ewc import EWC


class EWCCallback(TrainerCallback):
    """Adds the penalty's gradient before every step of the optimiser.

    A callback of `Trainer` cannot change the loss, and what `compute_loss_func` adds to it counts once for every
    batch of an accumulated step. So the gradient is added itself, after those of all batches and after their
    clipping: once a step, neither accumulated nor clipped. The logged loss is that of the new task alone; `penalty()`
    says what EWC adds.

    Example::

        penalty = EWC(model, FisherDiagonal.load("stores/old-task"), strength=1e3)
        Trainer(model, args, train_dataset=data, callbacks=[EWCCallback(penalty)]).train()

    Args:
        penalty: of the model that is trained.
    """

    def __init__(self, penalty: EWC) -> None:
        self.penalty = penalty

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer when the model is on its device; the penalty follows it there."""
        self.penalty.to(args.device)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer when a step's gradients are complete."""
        if args.fp16:
            raise ValueError(
                "Gradients of fp16 training are scaled, to which an EWC penalty cannot be added. Train in bf16 or fp32."
            )
        self.penalty.add_gradients_()
