from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from tomfisher.masks import SparseMask
from tomfisher.ops import weight_sums
from tomfisher.perturbation import WeightSums, perturb, session
from tomfisher.perturbation import sums as sums_module


def model_of(*sizes: int) -> nn.Module:
    return nn.ParameterList([nn.Parameter(torch.randn(n, 3) + 0.5) for n in sizes])


def mask_of(model: nn.Module, seed: int = 0) -> SparseMask:
    generator = torch.Generator().manual_seed(seed)
    named = dict(model.named_parameters())
    indices = {n: torch.randperm(p.numel(), generator=generator)[:4].sort().values for n, p in named.items()}
    return SparseMask(indices, {n: tuple(p.shape) for n, p in named.items()})


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """Numbers of tensors that were read, call by call."""
    counts: list[int] = []

    def counted(weights, impl="auto"):
        counts.append(len(weights))
        return weight_sums(weights, impl=impl)

    for module in (sums_module, session):
        monkeypatch.setattr(module, "weight_sums", counted)
    return counts


def fills(model: nn.Module, mask: SparseMask, **arguments) -> list[float]:
    with perturb(model, mask, **arguments):
        return [p.detach().view(-1)[mask[n][0]].item() for n, p in model.named_parameters()]


def test_a_sweep_reads_the_weights_once_and_fills_the_same(reads: list[int]) -> None:
    model, sums = model_of(20, 30, 40), WeightSums()
    masks = [mask_of(model, seed) for seed in range(5)]
    fresh = [fills(model, mask) for mask in masks]
    assert sum(reads) == 15
    reads.clear()
    assert [fills(model, mask, sums=sums) for mask in masks] == fresh
    assert sum(reads) == 3
    fills(model, masks[0], fill="zero", sums=sums)  # any fill puts the bits back
    assert [fills(model, mask, sums=sums) for mask in masks] == fresh
    assert sum(reads) == 3


@pytest.mark.parametrize("write", ["none", "data", "numpy", "fused"])
def test_one_perturbation_applied_again_reads_the_weights_again(write: str) -> None:
    model = model_of(20, 30)
    perturbation = perturb(model, mask_of(model))
    with perturbation:
        pass
    if write == "data":
        model[0].data.mul_(3)
    elif write == "numpy":
        model[0].detach().numpy()[:] *= 3
    elif write == "fused":  # moves no version counter either
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.Adam(model.parameters(), lr=0.5, fused=True).step()
    expected = fills(model, perturbation.mask)
    with perturbation:
        named = model.named_parameters()
        assert [p.detach().view(-1)[perturbation.mask[n][0]].item() for n, p in named] == expected


@pytest.mark.parametrize("write", ["add_", "optimizer", "copy_", "view", "slice"])
def test_a_write_makes_the_sum_of_that_tensor_invalid(reads: list[int], write: str) -> None:
    model, sums = model_of(20, 30), WeightSums()
    mask = mask_of(model)
    fills(model, mask, sums=sums)
    first = model[0]
    if write == "optimizer":
        first.grad = torch.ones_like(first)
        torch.optim.SGD([first], lr=0.5).step()
    else:
        with torch.no_grad():
            if write == "add_":
                first.add_(1)
            elif write == "copy_":
                first.copy_(torch.randn(20, 3))
            elif write == "view":
                first.view(-1)[7] = 100.0
            else:
                first[3:5] = 9.0
    reads.clear()
    assert fills(model, mask, sums=sums) == fills(model, mask)
    assert reads[0] == 1


def test_a_write_inside_the_block_is_noticed_after_it(reads: list[int]) -> None:
    model, sums = model_of(20), WeightSums()
    mask = mask_of(model)
    with (
        pytest.raises(RuntimeError, match="somebody else changed"),
        perturb(model, mask, sums=sums),
        torch.no_grad(),
    ):
        model[0].mul_(3)
    reads.clear()
    assert fills(model, mask, sums=sums) == fills(model, mask)
    assert reads == [1, 1]


def test_nested_perturbations_each_see_the_weights_as_they_are(reads: list[int]) -> None:
    model, sums = model_of(20, 30), WeightSums()
    outer, inner = mask_of(model, 1), mask_of(model, 2)
    with perturb(model, outer):
        expected = fills(model, inner)
    plain = fills(model, outer)
    reads.clear()
    for _ in range(2):
        with perturb(model, outer, sums=sums):
            assert fills(model, inner, sums=sums) == expected
            assert fills(model, inner, sums=sums) == expected
    assert fills(model, outer, sums=sums) == plain
    # the weights as they were twice over: once for good, and once per outer write
    assert sum(reads) == 2 + 2 + 2


def test_an_inner_perturbation_that_keeps_to_itself_makes_the_outer_read_again(reads: list[int]) -> None:
    model, sums = model_of(20), WeightSums()
    mask = mask_of(model)
    expected = fills(model, mask)
    with perturb(model, mask, sums=sums):
        fills(model, mask_of(model, 3))  # undone, but this cache cannot know
    reads.clear()
    assert fills(model, mask, sums=sums) == expected
    assert reads == [1]


def test_memory_used_again_by_another_tensor_is_not_mistaken() -> None:
    sums = WeightSums()
    for value in (1.0, 2.0, 3.0):
        tensor = torch.full((1000,), value)
        assert sums.of([tensor]).tolist() == [[1000 * value, 1000 * value]]
        del tensor
        gc.collect()


def test_views_of_one_memory_are_told_apart() -> None:
    base, sums = torch.arange(12.0).view(3, 4), WeightSums()
    got = sums.of([base, base[:, 0], base[0], base.t()])
    assert got[:, 0].tolist() == [66.0, 12.0, 6.0, 66.0]


def test_inference_tensors_are_read_every_time(reads: list[int]) -> None:
    with torch.inference_mode():
        tensor = torch.ones(3)
    sums = WeightSums()
    for _ in range(2):
        assert sums.of([tensor]).tolist() == [[3.0, 3.0]]
    assert sum(reads) == 2


def test_writes_through_data_need_clear() -> None:
    tensor, sums = torch.ones(3), WeightSums()
    sums.of([tensor])
    tensor.data.add_(1)
    assert sums.of([tensor]).tolist() == [[3.0, 3.0]]  # as documented: nobody told it
    sums.clear()
    assert sums.of([tensor]).tolist() == [[6.0, 6.0]]


def test_a_refused_fill_leaves_the_sums_usable() -> None:
    tensors = {"good": torch.tensor([1.0, 2.0, 6.0]), "bad": torch.tensor([1.0, float("nan")])}
    mask = SparseMask(
        {n: torch.tensor([0]) for n in tensors}, {n: tuple(t.shape) for n, t in tensors.items()}
    )
    sums = WeightSums()
    with pytest.raises(ValueError, match="bad holds NaN"):
        perturb(tensors, mask, sums=sums).apply()
    tensors["bad"][1] = 5.0
    with perturb(tensors, mask, sums=sums):
        assert tensors["good"][0] == 4.0 and tensors["bad"][0] == 5.0
