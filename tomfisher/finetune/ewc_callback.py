"""The EWC penalty in transformers' `Trainer`."""

from __future__ import annotations

import os
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
        """Called by the trainer when the model is on its device; the penalty follows it there.

        Raises:
            ValueError: the trainer scales the gradients (fp16), or spreads weights over processes (DeepSpeed, FSDP).
        """
        _refuse(args)
        self.penalty.to(args.device)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer when a step's gradients are complete."""
        self.penalty.add_gradients_()


def _refuse(args: Any) -> None:
    """Stop before the first step where the penalty's gradient cannot be added to those of the trainer."""
    if args.fp16:
        raise ValueError(
            "fp16 training scales its gradients, so that the EWC penalty's cannot be added to them. Train in bf16 or "
            "fp32."
        )
    if args.deepspeed or getattr(args, "deepspeed_plugin", None) is not None:
        raise ValueError(
            "DeepSpeed keeps the gradients in buffers of its own, where the EWC penalty's cannot be added. Train "
            "without it, in one process or with DistributedDataParallel."
        )
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes", "on"):
        raise ValueError(
            "FSDP spreads the weights over processes, and an EWC penalty holds whole ones. Train without FSDP, in one "
            "process or with DistributedDataParallel."
        )
