"""Training of masked entries against dense AdamW, and everything else left alone to the bit."""

from __future__ import annotations

import itertools

import pytest
import torch

from bits import bits, same_bits, state_of
from tomfisher import SparseMask, perturb
from tomfisher.finetune import finetune_masked
from tomfisher.finetune.entries import find_entries, gathered_gradients, master_values
from tomfisher.finetune.training import batch_order, mean_loss
from tomfisher.fisher.objective import sample_losses
from tomfisher.runtime.batches import collate
from tomfisher.runtime.modes import frozen
from training import some_mask, trainable_model

FAMILIES = ["llama-gqa", "llama-tied", "gpt2", "mixtral", "mamba"]


def dense_loss(model, samples):
    return sample_losses(model, collate(samples, range(len(samples))), "empirical", "mean", 0).mean()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_masked_entries_change_and_undo_is_exact(family, dtype, samples):
    model = trainable_model(family, dtype)
    mask, before = some_mask(model), state_of(model)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    tuned = finetune_masked(model, mask, samples, steps=3, learning_rate=0.05, batch_size=4)
    after = state_of(model)
    changed, aliases = (
        0,
        before.keys() - dict(model.named_parameters()).keys() - dict(model.named_buffers()).keys(),
    )
    assert aliases == ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    for name in before.keys() - aliases:
        moved = (bits(after[name]) != bits(before[name])).flatten()
        if name in mask:
            changed += int(moved.sum())
            assert not (moved & ~mask.dense(name).flatten()).any()
        else:
            assert not moved.any(), name
    assert changed > 0.5 * mask.nnz
    assert all(p.grad is None for p in model.parameters()) and model.training
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}
    tuned.undo()
    assert same_bits(state_of(model), before)


def test_weights_that_the_user_froze_are_trained_and_frozen_again(samples):
    model, frozen_one = trainable_model("llama-gqa"), trainable_model("llama-gqa")
    for parameter in frozen_one.parameters():
        parameter.requires_grad_(False)
    mask = some_mask(model)
    settings = {"steps": 2, "learning_rate": 0.05, "batch_size": 4}
    tuned, other = (finetune_masked(each, mask, samples, **settings) for each in (model, frozen_one))
    assert tuned.losses == other.losses and same_bits(state_of(model), state_of(frozen_one))
    assert not any(parameter.requires_grad for parameter in frozen_one.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_gathered_gradient_is_the_dense_gradient_at_the_entries(family, samples):
    model = trainable_model(family).eval()
    mask = some_mask(model)
    dense_loss(model, samples).backward()
    named = dict(model.named_parameters())
    dense = {name: named[name].grad.flatten() for name in mask}
    model.zero_grad()
    entries = find_entries(model, mask)
    values = master_values(entries)
    parameters = tuple(p for entry in entries for p in entry.parameters)
    with frozen(model, parameters), gathered_gradients(entries, values):
        for half in (samples[:5], samples[5:]):  # gradients of several backward passes add up
            (dense_loss(model, half) / 2).backward()
            assert all(p.grad is None for p in model.parameters())
    assert sum(value.numel() for value in values) == mask.nnz
    for entry, value in zip(entries, values, strict=True):
        expected = dense[entry.name][entry.index]
        scale = float(dense[entry.name].abs().max())
        assert scale > 0 and float((value.grad - expected).abs().max()) <= 1e-6 * max(scale, 1.0)


@pytest.mark.parametrize("family", ["llama-gqa", "llama-tied", "gpt2"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_equal_dense_adamw_restricted_to_the_mask(family, weight_decay, samples):
    steps, rate = 3, 1e-2
    model, dense = trainable_model(family), trainable_model(family).eval()
    mask = some_mask(model)
    named = dict(dense.named_parameters())
    trained = [named[name] for name in mask]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=weight_decay)
    for chosen in batch_order(len(samples), 4, steps, 7):
        optimizer.zero_grad()
        kept = [p.detach().clone() for p in trained]
        dense_loss(dense, [samples[i] for i in chosen]).backward()
        optimizer.step()
        with torch.no_grad():
            for name, parameter, old in zip(mask, trained, kept, strict=True):
                parameter.copy_(torch.where(mask.dense(name), parameter, old))
    finetune_masked(model, mask, samples, steps, rate, batch_size=4, weight_decay=weight_decay, seed=7)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, named[name], rtol=1e-5, atol=1e-6)


def test_optimiser_state_is_of_the_size_of_the_mask(samples, monkeypatch):
    made = []

    class Kept(torch.optim.AdamW):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(torch.optim, "AdamW", Kept)
    model = trainable_model()
    mask = some_mask(model)
    tuned = finetune_masked(model, mask, samples, steps=2)
    states = made.pop().state.values()
    tensors = sum(count > 0 for count in mask.counts().values())
    assert tuned.trainable == tuned.delta.nnz == mask.nnz and len(states) == tensors
    sizes = {kind: sum(state[kind].numel() for state in states) for kind in ("step", "exp_avg", "exp_avg_sq")}
    assert sizes == {"step": tensors, "exp_avg": mask.nnz, "exp_avg_sq": mask.nnz}
    assert all(state.keys() == sizes.keys() for state in states)


def test_loss_falls_and_a_seed_is_a_training(samples):
    model = trainable_model().eval()
    mask, before = some_mask(model, 0.2), mean_loss(model, samples)
    with finetune_masked(model, mask, samples, steps=60, learning_rate=1e-2, seed=3) as first:
        assert mean_loss(model, samples) < 0.5 * before
        state = state_of(model)
    assert mean_loss(model, samples) == before
    with finetune_masked(model, mask, samples, steps=60, learning_rate=1e-2, seed=3) as again:
        assert same_bits(state_of(model), state) and again.losses == first.losses
    with finetune_masked(model, mask, samples, steps=60, learning_rate=1e-2, seed=4) as other:
        assert other.losses != first.losses
    assert first.losses[0] == pytest.approx(
        mean_loss(model, [samples[i] for i in batch_order(10, 8, 1, 3)[0]])
    )


def test_small_steps_add_up_in_half_precision(samples):
    """One step of 1e-5 rounds to nothing in bfloat16; the float32 values behind it keep it."""
    model = trainable_model(dtype=torch.bfloat16)
    mask = some_mask(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with finetune_masked(model, mask, samples, steps=1, learning_rate=1e-5):
        few = sum(int((p != start[n]).sum()) for n, p in model.named_parameters())
    with finetune_masked(model, mask, samples, steps=40, learning_rate=1e-5):
        many = sum(int((p != start[n]).sum()) for n, p in model.named_parameters())
    assert many > few + 0.1 * mask.nnz


def test_parameters_that_share_memory_are_trained_once(samples):
    """Two parameter objects on one storage: the gradient of both uses counts, whichever is named."""
    tied, apart = trainable_model("llama-tied"), trainable_model("llama-tied")
    memory = apart.model.embed_tokens.weight.detach()
    apart.lm_head.weight = torch.nn.Parameter(memory)
    apart.config.tie_word_embeddings = False
    name = "model.embed_tokens.weight"
    mask = SparseMask({name: torch.arange(0, 500, 7)}, {name: tuple(memory.shape)})
    assert len(find_entries(apart, mask)[0].parameters) == 2
    finetune_masked(tied, mask, samples, steps=2)
    finetune_masked(apart, mask, samples, steps=2)
    torch.testing.assert_close(apart.lm_head.weight, tied.model.embed_tokens.weight, rtol=1e-5, atol=1e-6)
    assert torch.equal(apart.lm_head.weight, apart.model.embed_tokens.weight)


def test_transposed_weights_are_trained_where_the_mask_says(samples):
    plain, turned = trainable_model(), trainable_model()
    name = "model.layers.0.self_attn.q_proj.weight"
    module = turned.model.layers[0].self_attn.q_proj
    module.weight = torch.nn.Parameter(module.weight.detach().t().contiguous().t())
    mask = some_mask(plain).restrict(name)
    finetune_masked(plain, mask, samples, steps=2)
    finetune_masked(turned, mask, samples, steps=2)
    assert not module.weight.is_contiguous()
    torch.testing.assert_close(module.weight, plain.get_parameter(name), rtol=1e-5, atol=1e-6)


def test_a_broken_model_is_named_and_the_weights_are_as_before(samples):
    model = trainable_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    before = state_of(model)
    with pytest.raises(FloatingPointError, match=r"diverged at step 1 of 5.*model\.norm\.weight"):
        finetune_masked(model, some_mask(model), samples, steps=5)
    assert same_bits(state_of(model), before)


def test_a_training_that_diverges_later_is_undone(samples):
    model = trainable_model(dtype=torch.float16)
    before = state_of(model)
    with pytest.raises(FloatingPointError, match="diverged"):
        finetune_masked(model, some_mask(model), samples, steps=5, learning_rate=1e6)
    assert same_bits(state_of(model), before) and model.training


def test_an_interrupt_undoes_the_training(samples, monkeypatch):
    model = trainable_model()
    before = state_of(model)
    calls = itertools.count()
    step = torch.optim.AdamW.step

    def interrupted(self, *args, **kwargs):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune_masked(model, some_mask(model), samples, steps=5)
    assert next(calls) == 3 and same_bits(state_of(model), before)


def test_training_on_top_of_a_perturbation_nests(samples):
    model = trainable_model()
    mask, before = some_mask(model), state_of(model)
    with perturb(model, mask) as outer:
        damaged = state_of(model)
        tuned = finetune_masked(model, mask, samples, steps=1)
        with pytest.raises(RuntimeError, match="undo TunedEntries"):
            outer.undo()
        tuned.undo()
        assert same_bits(state_of(model), damaged)
    assert same_bits(state_of(model), before)


def test_bad_settings_are_refused(samples):
    model = trainable_model()
    mask = some_mask(model)
    with pytest.raises(ValueError, match="learning_rate must be a positive number"):
        finetune_masked(model, mask, samples, learning_rate=0.0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        finetune_masked(model, mask, samples, steps=0)
    with pytest.raises(ValueError, match="no samples"):
        finetune_masked(model, mask, [])
    with pytest.raises(ValueError, match="mask is empty"):
        finetune_masked(model, mask - mask, samples)
    with pytest.raises(ValueError, match="must be of this model"):
        finetune_masked(trainable_model("gpt2"), mask, samples)


def test_batches_reshuffle_when_all_samples_were_seen():
    order = batch_order(5, 2, 5, 0)
    flat = [i for chosen in order for i in chosen]
    assert sorted(flat[:5]) == sorted(flat[5:]) == list(range(5)) and flat[:5] != flat[5:]
    assert batch_order(5, 2, 3, 0) == order[:3] and batch_order(5, 2, 5, 1) != order
    assert len(batch_order(3, 8, 1, 0)[0]) == 8
