from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tomfisher.masks import SparseMask
from tomfisher.ops import masked_fill_mean_, resolve, scatter_, square_accumulate_, weight_sums
from tomfisher.ops.masked_fill import NonFiniteMeanError
from tomfisher.perturbation import WeightSums, perturb

pytest.importorskip("tomfisher.kernels.masked_fill")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
GIB = 1 << 30


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(BITS[tensor.element_size()]).flatten()


def random_bits(count: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, device="cuda").view(dtype)


def some_of(weight: Tensor, count: int) -> Tensor:
    return torch.randperm(weight.numel(), device="cuda")[:count]


def spacing(value: float, dtype: torch.dtype) -> float:
    at = torch.tensor(abs(value), dtype=torch.float64).to(dtype)
    return float(torch.nextafter(at, torch.tensor(math.inf, dtype=dtype)) - at)


def need(size: int) -> None:
    if torch.cuda.mem_get_info()[0] < size:
        pytest.skip(f"needs {size / GIB:.0f} GiB of free GPU memory")


def test_auto_is_triton() -> None:
    for op in ("weight_sums", "masked_fill_mean_", "scatter_", "square_accumulate_"):
        assert resolve(op, "auto", torch.device("cuda"))[0] == "triton"


@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_sums(dtype: torch.dtype) -> None:
    base = torch.randn(600, 500, device="cuda").to(dtype)
    weights = [base, base.t(), base[:, ::3], base.flatten()[1:200_000], base[:0]]
    weights += [torch.randn(n, device="cuda").to(dtype) for n in (1, 32_767, 32_768, 5_000_011)]
    got = weight_sums(weights, impl="triton")
    for row, weight in zip(got.tolist(), weights, strict=True):
        values = weight.double().flatten().cpu()
        total, absolute = math.fsum(values.tolist()), math.fsum(values.abs().tolist())
        assert abs(row[0] - total) <= 2.0**-47 * absolute
        assert abs(row[1] - absolute) <= 2.0**-47 * absolute
    assert torch.equal(weight_sums(weights[::-1], impl="triton").flip(0), got)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", [False, True])
def test_fill_and_undo(dtype: torch.dtype, given: bool) -> None:
    weights = [
        torch.randn(3_000_001, device="cuda").to(dtype),
        torch.randn(2, device="cuda").to(dtype),
        torch.randn(300, 400, device="cuda").to(dtype).t(),
        torch.randn(300, 400, device="cuda").to(dtype)[:, ::3],
        torch.empty(0, device="cuda", dtype=dtype),
    ]
    weights[0][7] = math.inf
    indices = [some_of(w, count) for w, count in zip(weights, (90_000, 1, 1000, 7, 0), strict=True)]
    indices[0] = torch.cat([indices[0][indices[0] != 7], torch.tensor([7], device="cuda")])
    before = [bits(weight).clone() for weight in weights]
    sums = weight_sums(weights) if given else None
    undo = masked_fill_mean_(weights, indices, sums=sums, impl="triton")
    for weight, index, old, was in zip(weights, indices, undo, before, strict=True):
        assert torch.equal(bits(old), was[index])
        untouched = torch.ones(weight.numel(), dtype=torch.bool, device="cuda").index_fill(0, index, False)
        assert torch.equal(bits(weight)[untouched], was[untouched])
        if len(index):
            values = weight.reshape(-1)[untouched].double().cpu().tolist()
            mean = math.fsum(values) / len(values)
            # half a unit for the rounding, a quarter for the sums; float64 itself has the sums' errors
            slack = (0.75 if dtype != torch.float64 else 4096) * spacing(mean, dtype)
            assert ((weight.reshape(-1)[index].double() - mean).abs() <= slack).all()
    scatter_(weights, indices, undo, impl="triton")
    assert all(torch.equal(bits(weight), was) for weight, was in zip(weights, before, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_moves_every_bit_pattern(dtype: torch.dtype) -> None:
    weights = [random_bits(100_000, dtype), random_bits(70 * 80, dtype).view(70, 80).t()]
    indices = [some_of(weight, count) for weight, count in zip(weights, (5000, 999), strict=True)]
    values = [random_bits(len(index), dtype) for index in indices]
    expected = [bits(weight).clone() for weight in weights]
    for wanted, index, value in zip(expected, indices, values, strict=True):
        wanted[index] = bits(value)
    scatter_(weights, indices, values, impl="triton")
    assert all(torch.equal(bits(weight), wanted) for weight, wanted in zip(weights, expected, strict=True))


def test_refusals_come_before_the_first_write() -> None:
    good, zero = torch.tensor([1.0, 3.0, 5.0], device="cuda"), torch.tensor([0], device="cuda")
    with pytest.raises(NonFiniteMeanError) as caught:
        masked_fill_mean_([good, torch.tensor([1.0, math.nan], device="cuda")], [zero, zero])
    assert caught.value.position == 1
    for bad, message in [
        ([3], "between 0 and 2, got 3"),
        ([1, 1], "must not repeat"),
        ([0, 1, 2], "entirely"),
    ]:
        with pytest.raises(ValueError, match=message):
            masked_fill_mean_([good, good.clone()], [zero, torch.tensor(bad, device="cuda")])
    with pytest.raises(ValueError, match="one device"):
        masked_fill_mean_([good, torch.ones(3)], [zero, zero])
    assert good.tolist() == [1.0, 3.0, 5.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_square_accumulate_no_worse_than_eager(dtype: torch.dtype) -> None:
    sizes = [0, 1, 2049, 8191, 8192, 3_000_001]
    for shift in (0, 1):
        F = [torch.rand(size + shift, device="cuda")[shift:] for size in sizes]
        gradients = [torch.randn(size + shift, device="cuda").to(dtype)[shift:] for size in sizes]
        exact = [f.double() + g.double() ** 2 for f, g in zip(F, gradients, strict=True)]
        eager = [f + g.float() ** 2 for f, g in zip(F, gradients, strict=True)]
        square_accumulate_(F, gradients, impl="triton")
        eps = torch.finfo(torch.float32).eps
        for got, plain, want in zip(F, eager, exact, strict=True):
            error = (got.double() - want).abs()
            assert (error <= 4 * eps * want).all()
            if len(want):
                assert error.max() <= (plain.double() - want).abs().max() + eps * want.max()


def test_a_model_is_perturbed_and_undone_by_the_kernels() -> None:
    model = nn.Sequential(*[nn.Linear(257, 257) for _ in range(40)]).cuda().bfloat16()
    named = dict(model.named_parameters())
    indices = {n: some_of(p, 1 + p.numel() // 1000).sort().values.cpu() for n, p in named.items()}
    mask = SparseMask(indices, {n: tuple(p.shape) for n, p in named.items()})
    before = [bits(p.detach()).clone() for p in model.parameters()]
    with perturb(model, mask, impl="reference"):
        expected = [p.detach().clone() for p in model.parameters()]
    sums = WeightSums()
    for _ in range(2):
        with perturb(model, mask, sums=sums):
            for got, want in zip(model.parameters(), expected, strict=True):
                assert ((got - want).abs() <= torch.finfo(torch.bfloat16).eps * want.abs()).all()
        assert all(
            torch.equal(bits(p.detach()), was) for p, was in zip(model.parameters(), before, strict=True)
        )


@pytest.mark.slow
def test_more_than_two_to_the_31_entries() -> None:
    need(24 * GIB)
    count = (1 << 31) + 12_345
    weight = torch.full((count,), 0.5, dtype=torch.bfloat16, device="cuda")
    far = torch.tensor([0, (1 << 31) - 1, 1 << 31, count - 1], device="cuda")
    weight[far] = 100.0
    assert weight_sums([weight]).tolist() == [[0.5 * (count - 4) + 400.0] * 2]
    undo = masked_fill_mean_([weight], [far])
    assert weight[far].tolist() == [0.5] * 4 and undo[0].tolist() == [100.0] * 4
    scatter_([weight], [far], undo)
    assert weight[far].tolist() == [100.0] * 4
    weight[:] = 0.5
    weight[count - 1] = math.inf  # the sums are of no use: the tensor is read again without that entry
    masked_fill_mean_([weight], [far[3:]])
    assert weight[count - 1] == 0.5
    F = torch.zeros(count, device="cuda")
    square_accumulate_([F], [weight])
    assert F.min() == F.max() == 0.25
