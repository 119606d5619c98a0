from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomfisher.ops import TopKAcross, resolve, topk, topk_across

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 6e-8, 65504.0])


def oracle(tensors: list[torch.Tensor], k: int) -> list[tuple[int, int]]:
    """Owner and index by (value descending, owner, index)."""
    places = [(owner, i) for owner, tensor in enumerate(tensors) for i in range(tensor.numel())]
    numbers = [tensor.flatten().double().tolist() for tensor in tensors]
    return sorted(places, key=lambda place: (-numbers[place[0]][place[1]], *place))[:k]


def check(tensors: list[torch.Tensor], k: int, found: TopKAcross) -> None:
    expected = oracle(tensors, k)
    assert found.owners.dtype == found.indices.dtype == torch.int64
    assert list(zip(found.owners.tolist(), found.indices.tolist(), strict=True)) == expected
    assert found.values.dtype == tensors[0].dtype
    values = [tensors[owner].flatten()[i].item() for owner, i in expected]
    assert found.values.tolist() == values
    assert [math.copysign(1, v) for v in found.values.tolist()] == [math.copysign(1, v) for v in values]
    assert found.threshold.shape == () and found.threshold.item() == (values[-1] if k else math.inf)


@settings(max_examples=100, deadline=None)
@given(
    lists=st.lists(st.lists(FEW, max_size=20), min_size=1, max_size=5),
    dtype=st.sampled_from(DTYPES),
    where=st.floats(0, 1),
)
def test_equals_a_sort_by_value_tensor_and_index(
    lists: list[list[float]], dtype: torch.dtype, where: float
) -> None:
    tensors = [torch.tensor(numbers, dtype=dtype) for numbers in lists]
    total = sum(map(len, lists))
    for k in {0, min(1, total), int(where * total), total}:
        check(tensors, k, topk_across(tensors, k))


def test_one_tensor_is_the_same_as_topk() -> None:
    values = torch.randint(0, 9, (40, 50)).float()
    alone = topk(values, 300)
    across = topk_across([values], 300)
    assert torch.equal(alone.indices, across.indices) and not across.owners.any()


def test_shapes_and_strides() -> None:
    tensors = [torch.randn(7, 9).t(), torch.tensor(1.5), torch.randn(3, 0), torch.randn(4, 8)[:, ::3]]
    check(tensors, 30, topk_across(tensors, 30))


def test_non_finite_is_refused_by_tensor_and_index() -> None:
    bad = torch.zeros(5)
    bad[3] = math.nan
    for k in (0, 2):
        with pytest.raises(ValueError, match=r"tensors\[1\] must be finite.*nan at flat index 3"):
            topk_across([torch.ones(2), bad], k)


@pytest.mark.skipif(importlib.util.find_spec("tomfisher._C") is None, reason="the C++ extension is not built")
@pytest.mark.parametrize("k", [0, 3, 60])
def test_implementations_flag_the_same_tensors(k: int) -> None:
    tensors = [torch.ones(n) for n in (20, 0, 30, 5, 5)]
    for owner, index, bad in ((0, 7, math.nan), (2, 29, math.inf), (2, 28, -math.inf), (4, 0, math.nan)):
        tensors[owner][index] = bad
    device = torch.device("cpu")
    status = {impl: resolve("topk_across", impl, device)[1](tensors, k)[2] for impl in ("cpp", "reference")}
    assert status["cpp"].tolist() == status["reference"].tolist() == [7, -1, 28, -1, 0]


@pytest.mark.parametrize(
    ("tensors", "k", "kind", "message"),
    [
        ([], 0, ValueError, "at least one tensor"),
        ([torch.zeros(2), torch.zeros(3)], 6, ValueError, r"between 0 and 5 .*got 6"),
        ([torch.zeros(2)], -1, ValueError, "between 0 and 2"),
        ([torch.zeros(2)], 1.0, TypeError, "k must be an integer"),
        ([torch.zeros(2), torch.zeros(2).half()], 1, TypeError, "share one dtype"),
        ([torch.zeros(2), torch.zeros(2, device="meta")], 1, ValueError, "share one device"),
        ([torch.arange(2)], 1, TypeError, r"tensors\[0\] must be float16"),
    ],
)
def test_bad_input(tensors, k, kind, message) -> None:
    with pytest.raises(kind, match=message):
        topk_across(tensors, k)
