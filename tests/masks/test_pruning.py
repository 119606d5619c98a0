from __future__ import annotations

import pytest
import torch
from torch.nn.utils import prune

from tiny_models import random_model
from tomfisher import FisherDiagonal, SparseMask
from tomfisher.masks import prune_with_torch, pruning_mask


def values(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_smallest_of_f_times_w_squared_go() -> None:
    F = {"a": values((7, 9), 0).square(), "b": values((40,), 1).square()}
    w = {"a": values((7, 9), 2).bfloat16(), "b": values((40,), 3), "unused": values((2,), 4)}
    mask = pruning_mask(F, w, 0.3, progress=False)
    assert {name: mask[name].numel() for name in mask} == {"a": 18, "b": 12}
    for name in mask:
        score = (F[name].double() * w[name].double() ** 2).flatten().tolist()
        order = sorted(range(len(score)), key=lambda i: (score[i], i))
        assert mask[name].tolist() == sorted(order[: mask[name].numel()])
        assert mask.dense(name).dtype == torch.bool and mask.dense(name).shape == F[name].shape


def test_of_a_quadratic_loss_they_are_those_that_cost_least() -> None:
    """The loss ½ Σ F (w - w*)² rises by exactly F w² / 2 where a weight of the optimum becomes 0."""
    F, w = values((30,), 0).square().double(), values((30,), 1).double()
    chosen = pruning_mask({"w": F}, {"w": w}, 0.2, progress=False)["w"].tolist()
    costs = []
    for i in range(30):
        pruned = w.clone()
        pruned[i] = 0
        costs.append((0.5 * (F * (pruned - w) ** 2).sum()).item())
    assert set(chosen) == set(sorted(range(30), key=costs.__getitem__)[:6])


def test_unreached_weights_go_first_and_ties_by_index(tmp_path) -> None:
    F = {"w": torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])}
    FisherDiagonal(F, 1, 1).save(tmp_path / "store")
    store = FisherDiagonal.load(tmp_path / "store")
    assert pruning_mask(store, {"w": torch.ones(6)}, 0.5, progress=False)["w"].tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("weights", "sparsity", "reason"),
    [
        ({}, 0.5, "they lack w"),
        ({"w": torch.ones(3)}, 0.5, r"\(2,\) in F and \(3,\) in the weights"),
        ({"w": torch.tensor([1.0, float("nan")])}, 0.5, "w hold NaN"),
        ({"w": torch.ones(2)}, 1.0, "^sparsity must lie strictly between 0 and 1"),
    ],
)
def test_what_does_not_fit_is_refused(weights, sparsity, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        pruning_mask({"w": torch.ones(2)}, weights, sparsity, progress=False)


def test_pruning_with_torch() -> None:
    model = random_model("llama-gqa", seed=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"]
    F = {name: values(tuple(before[name].shape), 5).square() for name in names}
    mask = pruning_mask(F, before, 0.5, progress=False)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        reference = random_model("llama-gqa", seed=1)
        for name in names:
            reference.get_parameter(name).masked_fill_(mask.dense(name), 0)
        expected = reference(ids).logits
    pruned = prune_with_torch(model, mask)
    assert torch.equal(model(ids).logits, expected)
    for (module, own), name in zip(pruned, names, strict=True):
        assert prune.is_pruned(module)
        assert torch.equal(module.weight_mask.bool(), ~mask.dense(name))
        prune.remove(module, own)
        assert torch.equal(module.weight, before[name].masked_fill(mask.dense(name), 0))


def test_pruning_with_torch_refuses_what_it_cannot_prune() -> None:
    tied = random_model("llama-tied", seed=1)
    name, shape = "model.embed_tokens.weight", tuple(tied.model.embed_tokens.weight.shape)
    with pytest.raises(ValueError, match=r"Several modules share model\.embed_tokens\.weight"):
        prune_with_torch(tied, SparseMask({name: torch.tensor([0])}, {name: shape}))
    with pytest.raises(ValueError, match="of another model: nowhere"):
        prune_with_torch(tied, SparseMask({}, {"nowhere": (2,)}))
