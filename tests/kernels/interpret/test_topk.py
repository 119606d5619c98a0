from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tomfisher.ops import topk, topk_across
from truth import largest

launcher = pytest.importorskip("tomfisher.kernels.topk")
from tomfisher.kernels import topk_bracket, topk_filter  # noqa: E402

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BEYOND_SMALL = 70_001  # more entries than the launcher takes as candidates without a bound
FILTER, TIES, BRACKET = "filter_kernel", "ties_kernel", "bracket_kernel"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which kernels went over the vectors, in order."""
    launched: list[str] = []

    class Spied:
        def __init__(self, kernel: Any, name: str) -> None:
            self._kernel, self._name = kernel, name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            launched.append(self._name)
            return self._kernel[grid]

    for module, name in ((topk_filter, FILTER), (topk_filter, TIES), (topk_bracket, BRACKET)):
        monkeypatch.setattr(module, name, Spied(getattr(module, name), name))
    return launched


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 3, 1023, 4096, 4097, 10_000])
def test_few_entries(dtype: torch.dtype, n: int) -> None:
    values = torch.randn(n).to(dtype)
    for k in {0, 1, n // 3, n - 1, n}:
        assert topk(values, k, impl="triton").indices.tolist() == largest(values, k).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_share_takes_one_pass(dtype: torch.dtype, reads: list[str]) -> None:
    values = torch.randn(BEYOND_SMALL).exp().to(dtype)
    found = topk(values, 70, impl="triton")
    assert found.indices.tolist() == largest(values, 70).tolist()
    assert reads == [FILTER]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 500, 30_000, BEYOND_SMALL])
def test_heavy_ties_take_the_lowest_indices(dtype: torch.dtype, k: int, reads: list[str]) -> None:
    values = torch.randint(-2, 3, (BEYOND_SMALL,)).to(dtype)
    assert topk(values, k, impl="triton").indices.tolist() == largest(values, k).tolist()
    assert reads == ([FILTER, TIES] if k <= 500 else [BRACKET, FILTER, TIES])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_share_of_distinct_values(dtype: torch.dtype, reads: list[str]) -> None:
    values = torch.randn(BEYOND_SMALL).to(dtype)
    assert topk(values, 35_000, impl="triton").indices.tolist() == largest(values, 35_000).tolist()
    assert reads == [BRACKET, FILTER, TIES]


@pytest.mark.parametrize("fill", [0.0, -1.5, 2.0])
def test_all_equal(fill: float) -> None:
    found = topk(torch.full((BEYOND_SMALL,), fill), 4097, impl="triton")
    assert found.indices.tolist() == list(range(4097))


@pytest.mark.parametrize("descending", [False, True])
def test_sorted_values(descending: bool) -> None:
    values = torch.arange(BEYOND_SMALL).float().sort(descending=descending).values
    assert topk(values, 300, impl="triton").indices.tolist() == largest(values, 300).tolist()


def sampled() -> Tensor:
    """Positions that are sampled of a vector of BEYOND_SMALL entries."""
    drawn = torch.empty(4096)
    topk_filter.sample([(torch.arange(BEYOND_SMALL).float(), 4096, 0)], drawn)
    assert len(drawn.unique()) == 4096
    return drawn.long()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "shift"), [(5000, 1), (40_000, 1), (40_000, -1), (BEYOND_SMALL - 3, 1)])
def test_a_sample_that_misleads_is_found_out(
    dtype: torch.dtype, k: int, shift: int, reads: list[str]
) -> None:
    """Every sampled entry is larger than every other, or smaller."""
    values = torch.rand(BEYOND_SMALL).to(dtype)
    values[sampled()] += 4 * shift
    assert topk(values, k, impl="triton").indices.tolist() == largest(values, k).tolist()
    assert reads[-2:] == [FILTER, TIES] and set(reads[:-2]) <= {FILTER, BRACKET} and BRACKET in reads


def test_more_entries_above_the_bound_than_fit_are_found_out(reads: list[str]) -> None:
    values = torch.rand(BEYOND_SMALL) + 1
    values[sampled()] = 0
    assert topk(values, 9, impl="triton").indices.tolist() == largest(values, 9).tolist()
    assert reads[0] == FILTER and BRACKET in reads


@pytest.mark.parametrize("n", [2000, BEYOND_SMALL])
def test_zeros_of_either_sign_and_denormals(n: int) -> None:
    values = torch.tensor([-0.0, 0.0, 1e-45, -1e-45, 3e-45, -0.0])[torch.randint(0, 6, (n,))]
    for k in (n // 4, n // 2, n):
        found = topk(values, k, impl="triton")
        assert found.indices.tolist() == largest(values, k).tolist()
        assert torch.equal(torch.signbit(found.values), torch.signbit(values[found.indices]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("n", "k"), [(5000, 0), (5000, 3), (BEYOND_SMALL, 0), (BEYOND_SMALL, 2500), (BEYOND_SMALL, 35_000)]
)
def test_the_first_non_finite_entry_is_named(bad: float, k: int, n: int) -> None:
    values = torch.rand(n)
    values[4500] = values[4777] = values[n - 1] = bad
    with pytest.raises(ValueError, match=rf"values must be finite.*got {bad} at flat index 4500"):
        topk(values, k, impl="triton")
    with pytest.raises(ValueError, match=r"tensors\[1\] must be finite.* index 4500"):
        topk_across([torch.rand(9), values], k, impl="triton")


def test_a_negative_nan_is_non_finite_too() -> None:
    values = torch.zeros(9)
    values.view(torch.int32)[5] = -1
    with pytest.raises(ValueError, match="index 5"):
        topk(values, 2, impl="triton")


def test_a_list_of_sizes_and_paths() -> None:
    values = [
        torch.randn(40, 33),
        torch.empty(0),
        torch.randn(BEYOND_SMALL),
        torch.randint(0, 3, (BEYOND_SMALL,)).float(),
        torch.randn(17, 19).t(),
        torch.tensor(2.0),
    ]
    counts = [7, 0, 100, 900, 40, 1]
    for tensor, k, found in zip(values, counts, topk(values, counts, impl="triton"), strict=True):
        assert found.indices.tolist() == largest(tensor, k).tolist()


@pytest.mark.parametrize("k", [0, 1, 90, 4000, 140_000])
def test_across_tensors_ties_go_to_the_earlier_one(k: int) -> None:
    shared = torch.randint(0, 4000, (BEYOND_SMALL,)).float()
    tensors = [torch.empty(0), shared[:100], shared, torch.empty(0), shared.clone()]
    found = topk_across(tensors, k, impl="triton")
    place = largest(torch.cat(tensors), k)
    owners = torch.tensor([1] * 100 + [2] * BEYOND_SMALL + [4] * BEYOND_SMALL)[place]
    starts = torch.tensor([0, 0, 100, 0, 100 + BEYOND_SMALL])
    assert torch.equal(found.owners, owners)
    assert torch.equal(found.indices, place - starts[owners])


def test_across_more_tensors_than_the_sample_has_entries(
    reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_SMALL", 1000)
    monkeypatch.setattr(launcher, "_SAMPLE", (400, 1 << 17))
    tensors = list(torch.randperm(450 * 17).float().split(17))
    found = topk_across(tensors, 9, impl="triton")
    place = largest(torch.cat(tensors), 9)
    assert torch.equal(found.owners, place // 17) and torch.equal(found.indices, place % 17)
    assert reads == [FILTER]


@pytest.mark.parametrize("sizes", [[20] * 5000, [0, 1, 70_000, 3, 0, 250_000_000], [1] * 70_000])
def test_the_whole_sample_is_drawn_and_no_vector_gives_more_than_it_has(sizes: list[int]) -> None:
    flats = [torch.empty(n, device="meta") for n in sizes]
    plan = launcher._plan(range(len(flats)), flats, 5)
    assert sum(plan.sizes) == min(max(sum(sizes) // 1024, 4096), 1 << 17)
    assert all(0 <= drawn <= n for drawn, n in zip(plan.sizes, sizes, strict=True))


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation returned."""

    found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.found = max(self.found, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("limit", [1, 200_000, 1 << 29])
def test_scratch_of_many_vectors_is_bounded(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flats = [torch.randn(1000) for _ in range(30)]
    monkeypatch.setattr(launcher, "_SCRATCH", limit)
    with Largest() as allocated:
        indices, status = launcher.topk(flats, [10] * 30)
    assert [found.tolist() for found in indices] == [largest(flat, 10).tolist() for flat in flats]
    assert status.tolist() == [-1] * 30
    alone = 1000 * 8 + 128
    assert allocated.found <= max(alone, limit / 96 * 8)
    assert limit < 1 << 29 or allocated.found >= 30 * alone - 30 * 128


def test_a_model_of_560_large_tensors_is_worked_on_in_few_parts_of_bounded_need() -> None:
    flats = [torch.empty(235_000_000, device="meta")] * 560
    groups = [launcher._plan(range(i, i + 1), flats, 235_000) for i in range(560)]
    parts = list(launcher._parts(groups))
    assert [group for part in parts for group in part] == groups
    assert all(sum(group.scratch for group in part) <= launcher._SCRATCH for part in parts)
    assert len(parts) < 100


@pytest.mark.parametrize("limit", [1, 1 << 29])
def test_a_bad_vector_leaves_the_status_of_the_others(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flats = [torch.randn(500), torch.randn(500), torch.randint(0, 2, (BEYOND_SMALL,)).float()]
    flats[1][77] = flats[1][99] = math.nan
    monkeypatch.setattr(launcher, "_SCRATCH", limit)
    assert launcher.topk(flats, [3, 3, 30_000])[1].tolist() == [-1, 77, -1]


def test_the_same_bits_twice_and_the_input_untouched() -> None:
    values = torch.randn(BEYOND_SMALL)
    before = values.clone()
    assert torch.equal(topk(values, 900, impl="triton").indices, topk(values, 900, impl="triton").indices)
    assert torch.equal(values, before)


def test_what_lies_beside_the_vector_does_not_matter() -> None:
    memory = torch.full((3 * BEYOND_SMALL,), math.nan)
    values = memory[BEYOND_SMALL + 1 : 2 * BEYOND_SMALL]
    values.copy_(torch.randn(BEYOND_SMALL - 1))
    for k in (80, 30_000):
        assert topk(values, k, impl="triton").indices.tolist() == largest(values, k).tolist()


def test_a_model_of_many_tensors_is_sampled_and_filtered_in_one_launch_each(
    reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And sends as many tables to the device as for one tensor."""
    monkeypatch.setattr(launcher, "_SMALL", 1000)
    monkeypatch.setattr(launcher, "_SAMPLE", (400, 1 << 17))
    sent = []
    for module in (topk_filter, launcher, topk_filter.tables):
        monkeypatch.setattr(module, "sent", lambda array, device: sent.append(1) or torch.from_numpy(array))
    tables_sent = []
    for count in (1, 60):
        flats = [torch.randn(2000) for _ in range(count)]
        for found, flat in zip(topk(flats, [5] * count, impl="triton"), flats, strict=True):
            assert found.indices.tolist() == largest(flat, 5).tolist()
        assert reads == [FILTER]
        tables_sent.append(len(sent))
        reads.clear()
        sent.clear()
    assert tables_sent[1] <= tables_sent[0] + 1  # which selection each candidate belongs to


@pytest.mark.parametrize("dtype", DTYPES)
def test_pivots_divide_every_bracket_of_bit_patterns(dtype: torch.dtype) -> None:
    smallest = torch.finfo(dtype).smallest_normal
    for low, high in (
        (-math.inf, math.inf),
        (-1.0, 0.0),
        (-0.0, smallest),
        (-smallest, smallest),
        (1.0, math.inf),
    ):
        below, above = topk_bracket._thirds(topk_bracket.Bracket(low, high), dtype)
        assert low < below <= above < high
        assert all(float(torch.tensor(x, dtype=dtype)) == x for x in (below, above))


def test_the_last_pattern_inside_a_bracket_is_found() -> None:
    one = torch.tensor(1.0)
    up, down = (float(torch.nextafter(one, torch.tensor(x))) for x in (2.0, 0.0))
    assert topk_bracket._thirds(topk_bracket.Bracket(down, up), torch.float32) == (1.0, 1.0)
