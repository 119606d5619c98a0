from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny_models import random_model
from tomfisher import FisherDiagonal
from tomfisher.finetune import EWC
from training import trainable_model


class Vector(nn.Module):
    """One weight vector."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values.clone())


def values(seed: int, n: int = 12) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_training_ends_at_the_closed_form() -> None:
    """The minimum of ½ Σ h (θ - a)² + λ/2 Σ F (θ - θ*)² is (h a + λ F θ*) / (h + λ F)."""
    old, new, h, F = values(0), values(1), values(2).square() + 0.1, values(3).square()
    model, strength = Vector(old), 3.0
    penalty = EWC(model, {"weight": F}, strength)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = 0.5 * (h * (model.weight - new) ** 2).sum() + penalty()
        loss.backward()
        return float(loss)

    optimizer.step(closure)
    assert torch.allclose(
        model.weight.detach(), (h * new + strength * F * old) / (h + strength * F), atol=1e-8
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_penalty_and_gradients(dtype: torch.dtype) -> None:
    model = trainable_model(dtype=dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    F = {name: torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) for name, p in before.items()}
    penalty = EWC(model, FisherDiagonal(F, num_samples=4, num_tokens=4), strength=2.5)
    assert penalty().item() == 0 and not list(penalty.parameters()) and not penalty.state_dict()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)).to(dtype) / 8)
    moved = {name: p.detach().double() - before[name].double() for name, p in model.named_parameters()}
    expected = 2.5 / 2 * sum((F[n].double() / 4 * moved[n] ** 2).sum() for n in F)
    assert penalty().item() == pytest.approx(float(expected), rel=1e-5)
    penalty().backward()
    by_autograd = {name: p.grad.clone() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        want = (2.5 * F[name].double() / 4 * moved[name]).to(dtype)
        assert torch.allclose(p.grad, want, rtol=2 * torch.finfo(dtype).eps + 1e-6, atol=1e-12), name
        p.grad = torch.ones_like(p) if "mlp" in name else None
    penalty.add_gradients_()
    for name, p in model.named_parameters():
        one = torch.ones_like(p) if "mlp" in name else torch.zeros_like(p)
        assert torch.allclose(p.grad, one + by_autograd[name], rtol=2 * torch.finfo(dtype).eps), name


def test_frozen_weights_are_left_out_and_what_does_not_fit_is_refused() -> None:
    model = random_model("llama-tied", seed=1)
    for name, p in model.named_parameters():
        p.requires_grad_("mlp" in name)
    F = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    assert all("mlp" in name for name in EWC(model, F, 1.0).names)
    with pytest.raises(ValueError, match="nothing to hold"):
        EWC(model, {"model.norm.weight": F["model.norm.weight"]}, 1.0)
    with pytest.raises(ValueError, match=r"1 of its tensors are no parameters of it, .*elsewhere"):
        EWC(model, {**F, "elsewhere": torch.ones(2)}, 1.0)
    with pytest.raises(ValueError, match="strength must be"):
        EWC(model, F, -1.0)


def trained(model: Any, folder: Path, callbacks: list[Any], **options: Any) -> Any:
    """Three steps of SGD of two batches each, in transformers' Trainer."""
    from transformers import Trainer, TrainingArguments

    settings: dict[str, Any] = {"max_steps": 3, "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "optim": "sgd"}
    settings |= {"report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments(output_dir=str(folder), **settings)
    row = {"input_ids": torch.arange(6), "labels": torch.arange(6)}
    trainer = Trainer(model, args, train_dataset=[row] * 12, callbacks=callbacks, **options)
    trainer.train()
    return trainer


def test_in_the_trainer_it_acts_once_a_step(tmp_path: Path) -> None:
    """With a loss of 0, SGD brings each weight back to the anchor by (1 - lr λ F)^steps, also with accumulation."""
    pytest.importorskip("accelerate")
    from tomfisher.finetune.ewc_callback import EWCCallback

    model = random_model("llama-gqa", seed=1)
    anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
    F = {name: torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) for name, p in anchor.items()}
    penalty = EWC(model, F, strength=2.0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)
    start = penalty().item()

    def nothing(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return outputs.logits.sum() * 0

    trained(model, tmp_path, [EWCCallback(penalty)], compute_loss_func=nothing)
    for name, p in model.named_parameters():
        want = anchor[name] + 0.5 * (1 - 0.1 * 2.0 * F[name]) ** 3
        assert torch.allclose(p.detach(), want, atol=1e-6), name
    assert penalty().item() < start


def test_in_the_trainer_a_penalty_of_zero_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from tomfisher.finetune.ewc_callback import EWCCallback

    model = random_model("llama-gqa", seed=1)
    other = copy.deepcopy(model)
    F = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    trained(model, tmp_path, [EWCCallback(EWC(model, F, strength=0.0))])
    trained(other, tmp_path, [])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [("fp16", "fp16 training scales"), ("deepspeed", "DeepSpeed keeps"), ("fsdp", "FSDP spreads")],
)
def test_in_the_trainer_what_it_cannot_be_added_to_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, reason: str
) -> None:
    pytest.importorskip("accelerate")
    from transformers import TrainingArguments

    from tomfisher.finetune.ewc_callback import EWCCallback

    model = random_model("llama-gqa", seed=1)
    callback = EWCCallback(
        EWC(model, {name: torch.ones_like(p) for name, p in model.named_parameters()}, 1.0)
    )
    args = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    callback.on_train_begin(args, None, None)
    setattr(args, setting, True)
    with pytest.raises(ValueError, match=reason):
        callback.on_train_begin(args, None, None)
    setattr(args, setting, False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch` says it
    with pytest.raises(ValueError, match="FSDP spreads"):
        callback.on_train_begin(args, None, None)
