from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tomfisher.masks import SparseMask
from tomfisher.ops import masked_fill_mean_, scatter_, weight_sums
from tomfisher.ops.masked_fill import NonFiniteMeanError, round_once
from tomfisher.perturbation import WeightSums, perturb

kernels = pytest.importorskip("tomfisher.kernels.masked_fill")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(BITS[tensor.element_size()]).flatten()


def some_of(weight: Tensor, count: int) -> Tensor:
    return torch.randperm(weight.numel())[:count]


def mean_without(weight: Tensor, index: Tensor) -> float:
    kept = torch.ones(weight.numel(), dtype=torch.bool).index_fill(0, index, False)
    values = weight.reshape(-1)[kept].double().tolist()
    return math.fsum(values) / len(values)


def spacing(value: float, dtype: torch.dtype) -> float:
    at = torch.tensor(abs(value), dtype=torch.float64).to(dtype)
    return float(torch.nextafter(at, torch.tensor(math.inf, dtype=dtype)) - at)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", [False, True])
def test_fill_and_undo(dtype: torch.dtype, given: bool) -> None:
    weights = [
        torch.randn(70_001).to(dtype),
        torch.randn(2).to(dtype),
        torch.randn(30, 40).to(dtype).t(),
        torch.randn(30, 40).to(dtype)[:, ::3],
        torch.empty(0, dtype=dtype),
        torch.randn(5).to(dtype),
    ]
    indices = [some_of(w, count) for w, count in zip(weights, (1300, 1, 100, 7, 0, 0), strict=True)]
    before = [bits(weight).clone() for weight in weights]
    exact = [mean_without(w, i) if len(i) else 0.0 for w, i in zip(weights, indices, strict=True)]
    sums = weight_sums(weights, impl="triton") if given else None
    undo = masked_fill_mean_(weights, indices, sums=sums, impl="triton")
    for weight, index, old, was, mean in zip(weights, indices, undo, before, exact, strict=True):
        assert torch.equal(bits(old), was[index])
        filled = weight.reshape(-1)[index].double()
        # half a unit for the rounding, a quarter for the sums; float64 itself has the sums' errors
        slack = (0.75 if dtype != torch.float64 else 512) * spacing(mean, dtype)
        assert ((filled - mean).abs() <= slack).all()
        untouched = torch.ones(weight.numel(), dtype=torch.bool).index_fill(0, index, False)
        assert torch.equal(bits(weight)[untouched], was[untouched])
    scatter_(weights, indices, undo, impl="triton")
    assert all(torch.equal(bits(weight), was) for weight, was in zip(weights, before, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_that_cancel_or_drown_are_not_used(dtype: torch.dtype) -> None:
    large = {torch.float16: 6e4, torch.bfloat16: 1e30, torch.float32: 1e30, torch.float64: 1e300}[dtype]
    drowned = torch.ones(40_000, dtype=dtype)
    drowned[39_999] = large
    poisoned = torch.tensor([math.inf, 2.0, 4.0, math.nan], dtype=dtype)
    near_zero = torch.tensor([3.0, 1.0, -1.0, 2.0**-14, 0.0], dtype=dtype)
    weights = [drowned, poisoned, near_zero]
    indices = [torch.tensor([39_999]), torch.tensor([3, 0]), torch.tensor([0])]
    payload = bits(poisoned).clone()
    undo = masked_fill_mean_(weights, indices, impl="triton")
    assert [float(w[i[0]]) for w, i in zip(weights, indices, strict=True)] == [1.0, 3.0, 2.0**-16]
    scatter_(weights, indices, undo, impl="triton")
    assert torch.equal(bits(poisoned), payload)


def test_with_trusted_sums_only_the_masked_entries_are_read() -> None:
    weight = torch.arange(1.0, 9.0)
    told = torch.tensor(
        [[1036.0, 1036.0]], dtype=torch.float64
    )  # not this tensor's: its entries are not looked at
    masked_fill_mean_([weight], [torch.tensor([0, 7])], sums=told, impl="triton")
    assert weight[0] == weight[7] == (1036 - 9) / 6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("given", [False, True])
def test_no_finite_mean_means_no_write_at_all(bad: float, given: bool) -> None:
    weights = [torch.tensor([1.0, 5.0]), torch.tensor([1.0, bad, 2.0]), torch.tensor([bad, bad])]
    indices = [torch.tensor([0]), torch.tensor([2]), torch.empty(0, dtype=torch.int64)]
    before = [bits(weight).clone() for weight in weights]
    sums = weight_sums(weights, impl="triton") if given else None
    with pytest.raises(NonFiniteMeanError) as caught:
        masked_fill_mean_(weights, indices, sums=sums, impl="triton")
    assert caught.value.position == 1
    assert all(torch.equal(bits(weight), was) for weight, was in zip(weights, before, strict=True))


def test_given_undo_vectors_of_any_stride_are_filled() -> None:
    weight, buffer = torch.arange(8.0), torch.zeros(6)
    masked_fill_mean_([weight], [torch.tensor([7, 0, 3])], [buffer[::2]], impl="triton")
    assert buffer.tolist() == [7.0, 0.0, 0.0, 0.0, 3.0, 0.0] and weight[7] == weight[3] == weight[0] == 18 / 5


def test_means_are_rounded_once() -> None:
    generator = torch.Generator().manual_seed(1)
    middles = (torch.randint(128, 256, (400,), generator=generator) + 0.5) * 2.0 ** -(
        1 + torch.arange(400) % 30
    )
    means = torch.cat([middles, middles * (1 + 2.0**-40), -middles * (1 - 2.0**-40), torch.zeros(1)]).double()
    for dtype in DTYPES:
        assert torch.equal(kernels._narrow(means, dtype), round_once(means, dtype))


def test_a_tensor_masked_but_for_one_entry() -> None:
    weight = torch.randn(3000)
    index = torch.cat([torch.arange(1234), torch.arange(1235, 3000)])
    masked_fill_mean_([weight], [index], impl="triton")
    assert bool((weight == weight[1234]).all())


def test_a_model_is_perturbed_and_undone_by_the_kernels() -> None:
    model = nn.Sequential(nn.Linear(40, 30), nn.LayerNorm(30), nn.Linear(30, 7))
    named = dict(model.named_parameters())
    indices = {n: some_of(p, max(1, p.numel() // 10)).sort().values for n, p in named.items()}
    mask = SparseMask(indices, {n: tuple(p.shape) for n, p in named.items()})
    before = [bits(p.detach()).clone() for p in model.parameters()]
    with perturb(model, mask, impl="reference"):
        expected = [p.detach().clone() for p in model.parameters()]
    sums = WeightSums()
    for _ in range(2):
        with perturb(model, mask, impl="triton", sums=sums):
            for got, want in zip(model.parameters(), expected, strict=True):
                assert ((got - want).abs() <= torch.finfo(torch.float32).eps * want.abs()).all()
        assert all(
            torch.equal(bits(p.detach()), was) for p, was in zip(model.parameters(), before, strict=True)
        )
