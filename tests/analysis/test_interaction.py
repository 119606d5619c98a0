"""How far masked weights act together: against dense autograd, and planted where it is known."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from tiny_models import random_model
from tomfisher import Sample, SparseMask, fisher_diagonal, perturb
from tomfisher.analysis import effective_rank, interaction, interactions
from tomfisher.analysis.interaction import gram_eigenvalues
from tomfisher.fisher.objective import drawn_labels
from tomfisher.runtime.batches import collate
from training import some_mask, training_samples
from truth import IGNORED


def dense(model, samples, mask, delta):
    """`[N, k]` gradients, `[k]` of δ, and losses, float64, one sample at a time."""
    model = copy.deepcopy(model).double().eval()
    parameters = dict(model.named_parameters())
    rows, losses = [], []
    for sample in samples:
        model.zero_grad()
        logits = model(input_ids=sample.input_ids[None], use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, sample.labels[1:], ignore_index=IGNORED)
        loss.backward()
        losses.append(loss.detach())
        rows.append(torch.cat([parameters[n].grad.flatten()[index] for n, index in mask.items()]))
    return torch.stack(rows), torch.cat([delta(n, parameters[n].detach()) for n in mask]), torch.stack(losses)


def linear_mask(model, share=0.01, seed=0):
    return some_mask(model, share, seed).restrict("*_proj.weight")


def test_every_part_is_that_of_dense_autograd():
    model, samples = random_model("llama-gqa", noise=0.05), training_samples()
    mask = linear_mask(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = interaction(model, samples, mask, fill="zero", tokens_per_batch=30, progress=False)
    G, delta, losses = dense(model, samples, mask, lambda n, w: -w.flatten()[mask[n]])
    torch.testing.assert_close(found.first, G @ delta, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.diagonal, (G * delta).square().sum(1) / 2, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found.joint, (G @ delta).square() / 2, rtol=1e-4, atol=1e-9)
    block = G.T @ G  # k x k, which the package never forms
    expected = torch.linalg.eigvalsh(block).flip(0)[: len(samples)]
    torch.testing.assert_close(found.eigenvalues, expected, rtol=1e-4, atol=1e-7 * float(expected[0]))
    assert found.effective_rank == pytest.approx(effective_rank(expected.clamp_min(0)), rel=1e-3)
    changed = copy.deepcopy(model)
    for name, index in mask.items():
        dict(changed.named_parameters())[name].data.view(-1)[index] = 0
    after = dense(changed, samples, mask, lambda n, w: w.flatten()[mask[n]])[2]
    torch.testing.assert_close(found.measured, after - losses, rtol=1e-3, atol=2e-6)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_sum_of_the_diagonal_is_that_of_the_fisher_diagonal():
    model, samples = random_model("llama-gqa", noise=0.05), training_samples()
    mask = linear_mask(model)
    F = fisher_diagonal(model, samples, progress=False)
    found = interaction(model, samples, mask, fill=0.1, progress=False)
    w = dict(model.named_parameters())
    total = sum(
        (F[n].flatten()[i].double() * (0.1 - w[n].detach().flatten()[i].double()).square()).sum() / 2
        for n, i in mask.items()
    )
    assert found.diagonal.sum().item() == pytest.approx(total.item(), rel=1e-4)


def planted(sign):
    """A model with two equal hidden units, and the weights that read them into one output: `+0.5` and `sign·0.5`."""
    model = random_model("llama-gqa", noise=0.05)
    mlp = model.model.layers[0].mlp
    with torch.no_grad():
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight[5] = projection.weight[3]
        mlp.down_proj.weight[7, 3], mlp.down_proj.weight[7, 5] = 0.5, sign * 0.5
    name, width = "model.layers.0.mlp.down_proj.weight", mlp.down_proj.weight.shape[1]
    return model, SparseMask(
        {name: torch.tensor([7 * width + 3, 7 * width + 5])}, {name: mlp.down_proj.weight.shape}
    )


def test_two_weights_that_do_the_same_act_twice_as_much_as_the_diagonal_says():
    model, mask = planted(+1)
    found = interaction(model, training_samples(), mask, fill="zero", progress=False)
    ratio = found.ratio
    for value in (ratio.mean, ratio.low, ratio.high):
        assert value == pytest.approx(2.0, rel=1e-4)
    assert len(found.eigenvalues) == 1 or found.eigenvalues[1] < 1e-6 * found.eigenvalues[0]
    assert found.effective_rank == pytest.approx(1.0, abs=1e-3)


def test_two_weights_that_cancel_do_nothing_together():
    """Either alone changes the loss, and the diagonal says that both do; together they change nothing."""
    model, mask = planted(-1)
    (name,) = mask
    found = interaction(model, training_samples(), mask, fill="zero", progress=False)
    assert found.diagonal.sum() > 0
    assert found.ratio.high < 1e-6 and found.measured.abs().max() < 1e-6
    alone = interaction(
        model, training_samples(), SparseMask({name: mask[name][:1]}, mask.shapes), "zero", progress=False
    )
    assert alone.measured.abs().max() > 1e-5
    assert alone.ratio.mean == pytest.approx(1.0, rel=1e-6)  # one weight: nothing to interact with


def test_several_masks_in_one_pass_are_each_alone():
    model, samples = random_model("llama-gqa", noise=0.05), training_samples()
    masks = {
        "a": linear_mask(model, 0.01, 0),
        "b": linear_mask(model, 0.02, 1),
        "none": linear_mask(model) - linear_mask(model),
    }
    together = interactions(model, samples, masks, progress=False)
    for name, mask in masks.items():
        alone = interaction(model, samples, mask, progress=False)
        torch.testing.assert_close(together[name].first, alone.first)
        torch.testing.assert_close(together[name].diagonal, alone.diagonal)
        torch.testing.assert_close(together[name].measured, alone.measured)
        assert together[name].nnz == mask.nnz
    empty = together["none"]
    assert not empty.first.any() and not empty.measured.any() and math.isnan(empty.ratio.mean)
    assert empty.effective_rank == 0.0


def test_the_spectrum_is_left_out_of_large_masks():
    model, mask = random_model("llama-gqa"), linear_mask(random_model("llama-gqa"))
    found = interaction(model, training_samples(), mask, spectrum_limit=mask.nnz - 1, progress=False)
    assert found.eigenvalues is None and found.effective_rank is None and found.to_dict()["spectrum"] is None


@pytest.mark.parametrize("shape", [(4, 30), (30, 4)])
def test_eigenvalues_are_those_of_the_block_whichever_side_is_longer(shape):
    G = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.eigvalsh(G.double().T @ G.double()).flip(0)[:4]
    torch.testing.assert_close(gram_eigenvalues(G), expected)


def test_means_have_intervals_over_the_samples():
    model, samples = random_model("llama-gqa", noise=0.05), training_samples()
    found = interaction(model, samples, linear_mask(model), progress=False)
    first = found.summary()["first"]
    half = 1.959964 * found.first.std().item() / math.sqrt(10)
    assert (first.low, first.high) == pytest.approx((first.mean - half, first.mean + half))
    ratio = found.ratio
    assert ratio.low < ratio.mean < ratio.high
    assert ratio.mean == pytest.approx((found.joint.sum() / found.diagonal.sum()).item())


def test_what_cannot_be_measured_is_refused():
    model, mask = random_model("llama-gqa"), linear_mask(random_model("llama-gqa"))
    with pytest.raises(ValueError, match="samples is empty"):
        interaction(model, [], mask)
    other = SparseMask({"nothing": torch.tensor([0])}, {"nothing": (2, 2)})
    with pytest.raises(ValueError, match="nothing"):
        interaction(model, training_samples(), other, progress=False)


def test_sampled_labels_are_drawn_once_of_the_untouched_model():
    """A mask whose fill changes every prediction would draw other labels: all losses are of the first ones."""
    model, samples = random_model("llama-gqa", noise=0.05), training_samples()
    mask = linear_mask(model, 0.3)
    with torch.no_grad():
        batch = collate(samples, range(len(samples)))
        labels = drawn_labels(model, batch, 7)
        with perturb(model, mask, fill="zero"):
            assert not torch.equal(drawn_labels(model, batch, 7), labels)
    drawn = [Sample(s.input_ids, row[: len(s)].clone()) for s, row in zip(samples, labels, strict=True)]
    assert any(not torch.equal(a.labels, b.labels) for a, b in zip(drawn, samples, strict=True))
    expected = interaction(model, drawn, mask, "zero", progress=False)
    found = interaction(
        model, samples, mask, "zero", seed=7, labels="sampled", tokens_per_batch=30, progress=False
    )
    torch.testing.assert_close(found.measured, expected.measured, rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(found.first, expected.first, rtol=1e-4, atol=1e-7)
    F = fisher_diagonal(model, samples, labels="sampled", seed=7, progress=False)  # of the same labels
    G = fisher_diagonal(model, drawn, progress=False)
    assert all(torch.allclose(F[name], G[name], rtol=1e-4, atol=1e-9) for name in F)
