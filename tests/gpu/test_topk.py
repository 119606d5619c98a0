from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tomfisher.ops import topk, topk_across

launcher = pytest.importorskip("tomfisher.kernels.topk")

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
GIB = 1 << 30


def expected(values: Tensor, k: int) -> Tensor:
    return torch.sort(values.flatten() + 0.0, descending=True, stable=True).indices[:k]


def normal(n: int) -> Tensor:
    return torch.randn(n, device="cuda")


DISTRIBUTIONS = {
    "normal": normal,
    "log-normal": lambda n: (4 * normal(n)).clamp(max=10).exp(),
    "ties": lambda n: torch.randint(-2, 3, (n,), device="cuda").float(),
    "equal": lambda n: torch.full((n,), 0.25, device="cuda"),
    "rising": lambda n: torch.linspace(0, 1, n, device="cuda"),
    "falling": lambda n: torch.linspace(1, 0, n, device="cuda"),
    "tiny": lambda n: torch.randint(-3, 4, (n,), device="cuda") * 1e-45 * torch.ones(n, device="cuda"),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
@pytest.mark.parametrize("n", [1, 4097, 65_537, 3_000_001])
def test_equals_a_stable_sort(dtype: torch.dtype, make, n: int) -> None:
    values = make(n).to(dtype)
    for k in {0, 1, n // 100_000 + 1, n // 1000, n // 10, n // 2, n}:
        assert torch.equal(topk(values, k, impl="triton").indices, expected(values, k))


def test_a_list_with_one_k_each() -> None:
    values = [torch.randn(n, device="cuda") for n in (0, 1, 5000, 200_000, 2_000_000)]
    counts = [0, 1, 70, 2000, 300_000]
    for tensor, k, found in zip(values, counts, topk(values, counts, impl="triton"), strict=True):
        assert torch.equal(found.indices, expected(tensor, k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [0, 17, 3000, 900_000])
def test_across_equals_a_sort_of_the_concatenation(dtype: torch.dtype, k: int) -> None:
    tensors = [torch.randint(0, 5000, (n,), device="cuda").to(dtype) for n in (1000, 0, 700_000, 800_000)]
    found = topk_across(tensors, k, impl="triton")
    starts = torch.tensor([0, 1000, 1000, 701_000], device="cuda")
    assert torch.equal(starts[found.owners] + found.indices, expected(torch.cat(tensors), k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("k", [0, 10, 1_000_000])
def test_the_first_non_finite_entry_is_named(dtype: torch.dtype, bad: float, k: int) -> None:
    values = torch.rand(2_000_000, device="cuda").to(dtype)
    values[123_457] = values[1_000_000] = bad
    with pytest.raises(ValueError, match="flat index 123457"):
        topk(values, k, impl="triton")


def test_the_same_bits_every_time() -> None:
    values = torch.randint(0, 100_000, (5_000_000,), device="cuda").float()
    first = topk(values, 5000, impl="triton").indices
    assert all(torch.equal(first, topk(values, 5000, impl="triton").indices) for _ in range(5))


@pytest.mark.parametrize("k", [100, 20_000])
@pytest.mark.parametrize("make", [DISTRIBUTIONS["normal"], DISTRIBUTIONS["ties"]], ids=["normal", "ties"])
def test_memory_on_the_way_is_bounded(make, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flats = [make(4_000_000) for _ in range(40)]
    largest = max(launcher._plan(range(1), flats, k).scratch, launcher._PER_CANDIDATE * k)
    monkeypatch.setattr(launcher, "_SCRATCH", 4 * largest)
    launcher.topk(flats, [k] * 40)  # the library's own workspaces
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = launcher.topk(flats, [k] * 40)
    peak = torch.cuda.max_memory_allocated() - before
    returned = sum(2 * 8 * indices.numel() for indices in found[0])  # in the concatenation, then in each
    blocks = 40 * 64 * -(-4_000_000 // 4096)
    assert peak <= 4 * largest + returned + blocks + (1 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_more_than_2_to_the_31_entries(tied: bool) -> None:
    n = 2**31 + 12_345
    if torch.cuda.mem_get_info()[0] < 24 * GIB:
        pytest.skip("needs 24 GiB of free GPU memory")
    values = torch.zeros(n, device="cuda")
    if not tied:
        for start in range(0, n, 1 << 28):
            values[start : start + (1 << 28)].uniform_()
    planted = torch.tensor([n - 1, 5, 2**31 + 7, 2**31 - 1, 1_000_000_000], device="cuda")
    values[planted] = torch.tensor([9.0, 8.0, 7.0, 7.0, 6.0], device="cuda")
    found = topk(values, 2000, impl="triton").indices
    assert found[:5].tolist() == [n - 1, 5, 2**31 - 1, 2**31 + 7, 1_000_000_000]
    if tied:
        assert found[5:].tolist() == [i for i in range(1996) if i != 5]
    else:
        assert int((values >= values[found[-1]]).sum()) >= 2000 > int((values > values[found[-1]]).sum())
