from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import truth
from bits import DTYPES, bits
from tomfisher.ops import TopK, topk


def check(values: torch.Tensor, k: int, found: TopK) -> None:
    expected = truth.largest(values, k).tolist()
    assert found.indices.dtype == torch.int64
    assert found.indices.tolist() == expected
    assert found.values.dtype == values.dtype
    flat = values.flatten()
    assert torch.equal(bits(found.values), bits(flat[expected]))
    assert found.threshold.shape == ()
    assert found.threshold.item() == (flat[expected[-1]].item() if k else math.inf)


FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 5e-324, 1e-45, -1e-45, 6e-8, 65504.0])
ANY = st.floats(min_value=-60000, max_value=60000, allow_nan=False, width=32)


@settings(max_examples=150, deadline=None)
@given(
    numbers=st.one_of(st.lists(FEW, max_size=60), st.lists(ANY, max_size=60), st.just([0.0] * 40)),
    dtype=st.sampled_from(DTYPES),
    where=st.floats(0, 1),
)
def test_equals_a_stable_sort(numbers: list[float], dtype: torch.dtype, where: float) -> None:
    values = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    for k in {0, min(1, len(numbers)), max(len(numbers) - 1, 0), len(numbers), int(where * len(numbers))}:
        check(values, k, topk(values, k))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_with_heavy_ties_at_the_threshold(dtype: torch.dtype) -> None:
    values = torch.randint(0, 5, (300, 211)).to(dtype)
    for k in (1, 1000, 12_660, 63_299):
        check(values, k, topk(values, k))


def test_all_equal_takes_the_lowest_indices() -> None:
    assert topk(torch.full((70_000,), 3.0), 5000).indices.tolist() == list(range(5000))


def test_negative_zero_ties_with_zero_but_keeps_its_sign() -> None:
    found = topk(torch.tensor([-0.0, 0.0, -0.0, -1.0]), 3)
    assert found.indices.tolist() == [0, 1, 2]
    assert torch.signbit(found.values).tolist() == [True, False, True]


def test_denormals_are_ordered() -> None:
    tiny = torch.tensor([1e-45, 3e-45, 0.0, 2.8e-45])
    assert topk(tiny, 3).indices.tolist() == truth.largest(tiny, 3).tolist()
    assert topk(tiny, 1).indices.tolist() == [1]


@pytest.mark.parametrize("make", [lambda w: w.t(), lambda w: w[:, ::3], lambda w: w.t()[1:-1, 2:]])
def test_non_contiguous_is_counted_row_major(make) -> None:
    values = make(torch.randn(17, 23))
    assert not values.is_contiguous()
    check(values, 40, topk(values, 40))


def test_list_of_tensors_with_one_k_each() -> None:
    values = [torch.randn(5, 4), torch.empty(0), torch.randn(33), torch.tensor(2.0)]
    for tensor, k, found in zip(values, (7, 0, 33, 1), topk(values, [7, 0, 33, 1]), strict=True):
        check(tensor, k, found)
    assert [len(found.indices) for found in topk([torch.ones(3), torch.ones(4)], 2)] == [2, 2]
    assert topk([], 3) == []


def test_gradient_is_not_tracked_and_input_is_unchanged() -> None:
    values = torch.randn(50, requires_grad=True)
    before = values.detach().clone()
    found = topk(values, 5)
    assert not found.values.requires_grad
    assert torch.equal(values, before)


def test_result_does_not_depend_on_the_thread_count() -> None:
    values = torch.randint(0, 50, (400_000,)).float()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = topk(values, 30_000).indices
        torch.set_num_threads(2)
        assert torch.equal(one, topk(values, 30_000).indices)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_is_refused_with_its_first_index(bad: float, dtype: torch.dtype) -> None:
    values = torch.zeros(4, 5, dtype=dtype)
    values[1, 2] = values[3, 3] = bad
    with pytest.raises(ValueError, match=rf"values must be finite.*{bad} at flat index 7"):
        topk(values, 0)
    with pytest.raises(ValueError, match=r"values\[1\] must be finite"):
        topk([torch.zeros(3, dtype=dtype), values], 1)


@pytest.mark.parametrize("k", [-1, 7])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match="between 0 and 6"):
        topk(torch.zeros(2, 3), k)


def test_wrong_kinds() -> None:
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        topk(torch.arange(3), 1)
    with pytest.raises(TypeError, match="k must be an integer"):
        topk(torch.zeros(3), True)
    with pytest.raises(TypeError, match="k must be an integer"):
        topk([torch.zeros(3)], [1.5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="one per tensor, got 2 for 1"):
        topk([torch.zeros(3)], [1, 1])


@pytest.mark.parametrize("call", [lambda tensors: topk(tensors, 1), lambda tensors: topk(tensors, [1, 2])])
def test_a_list_has_one_dtype_and_one_device(call) -> None:
    with pytest.raises(
        TypeError,
        match=r"values must share one dtype, got \['torch.float32', 'torch.float64'\]. Call topk once per dtype.",
    ):
        call([torch.zeros(3), torch.zeros(3, dtype=torch.float64)])
    with pytest.raises(
        ValueError, match=r"share one device, got \['cpu', 'meta'\]. Call topk once per device."
    ):
        call([torch.zeros(3), torch.zeros(3, device="meta")])


def test_triton_without_a_gpu_is_refused_rather_than_replaced() -> None:
    # either the package or the device is missing
    with pytest.raises(RuntimeError, match="impl='triton' needs"):
        topk(torch.zeros(3), 1, impl="triton")


def test_what_is_no_tensor_or_no_count_is_refused() -> None:
    with pytest.raises(TypeError, match=r"values\[0\] must be a tensor, got int"):
        topk([1, 2], 1)  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"k must be an integer, or one per tensor, got 2\.5"):
        topk(torch.rand(4), 2.5)  # type: ignore[call-overload]
