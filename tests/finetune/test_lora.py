"""LoRA of a given size: its count against a brute-force search, and the model as it was afterwards."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch

from bits import same_bits, state_of
from tomfisher.finetune import finetune_lora, plan_lora
from tomfisher.finetune.training import mean_loss
from training import trainable_model

pytest.importorskip("peft", reason="LoRA is compared through the package peft (extra `finetune`)")


def decoder(model):
    return [name for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]


@pytest.mark.parametrize("budget", [64, 100, 500, 1233, 5000, 20000])
def test_the_count_is_the_nearest_from_below(budget):
    """Two layers: every set of kinds, in one layer or both, at every rank, tried by hand."""
    model = trainable_model()
    plan = plan_lora(model, decoder(model), budget)
    layer = model.model.layers[0]
    modules = {n.rsplit(".", 1)[-1]: m.weight for n, m in layer.named_modules() if hasattr(m, "in_features")}
    counts = set()
    for size in range(1, len(modules) + 1):
        for kinds in itertools.combinations(modules, size):
            cost = sum(sum(modules[kind].shape) for kind in kinds)
            full = min(min(modules[kind].shape) for kind in kinds)
            counts |= {layers * cost * rank for layers in (1, 2) for rank in range(1, full + 1)}
    assert plan.trainable == max(count for count in counts if count <= budget) and plan.budget == budget
    costs = [sum(model.get_parameter(f"{name}.weight").shape) for name in plan.modules]
    assert plan.trainable == plan.rank * sum(costs)
    assert str(plan.trainable) in plan.describe() and str(budget) in plan.describe()


def test_a_budget_below_every_lora_is_said():
    model = trainable_model()
    with pytest.raises(
        ValueError, match="smallest LoRA, rank 1 on one module, has 48 parameters, more than the 47"
    ):
        plan_lora(model, decoder(model), 47)
    with pytest.raises(ValueError, match="linear module"):
        plan_lora(model, ["model.embed_tokens.weight", "model.norm.weight"], 1000)


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_changes_nothing_of_the_model_itself(family, dtype, samples):
    model = trainable_model(family, dtype)
    names = [
        name for name, p in model.named_parameters() if p.ndim == 2 and ("layers" in name or ".h." in name)
    ]
    before, attributes = state_of(model), set(vars(model))
    modules = dict(model.named_modules())
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    plan = plan_lora(model, names, 1000)
    start = mean_loss(model, samples)
    with finetune_lora(model, plan, samples, steps=30, learning_rate=3e-2) as tuned:
        assert tuned.trainable == plan.trainable == sum(p.numel() for p in tuned.parameters())
        trained = mean_loss(model, samples)
        assert trained < 0.9 * start
        own = {
            name.replace(".base_layer", ""): value
            for name, value in state_of(model).items()
            if "lora" not in name
        }
        assert same_bits(own, before)
    assert same_bits(state_of(model), before) and mean_loss(model, samples) == start
    assert dict(model.named_modules()) == modules and set(vars(model)) == attributes
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}
    tuned.reapply()
    assert mean_loss(model, samples) == trained
    tuned.undo()
    assert same_bits(state_of(model), before)
    with pytest.raises(RuntimeError, match="twice"):
        tuned.undo()


def test_a_seed_is_a_training(samples):
    model = trainable_model()
    plan = plan_lora(model, decoder(model), 1000)
    state = torch.get_rng_state()
    losses = []
    for seed in (1, 1, 2):
        with finetune_lora(model, plan, samples, steps=4, seed=seed) as tuned:
            losses.append(tuned.losses)
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_training_that_diverges_takes_the_adapters_out(samples):
    model = trainable_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    before = state_of(model)
    with pytest.raises(FloatingPointError, match="diverged at step 1"):
        finetune_lora(model, plan_lora(model, decoder(model), 1000), samples, steps=3)
    assert same_bits(state_of(model), before)


def test_missing_peft_is_said_with_the_command(samples, monkeypatch):
    model = trainable_model()
    plan = plan_lora(model, decoder(model), 1000)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match="pip install peft"):
        finetune_lora(model, plan, samples)
