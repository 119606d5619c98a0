from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bits import DTYPES, bits, random_bits
from tomfisher.ops import scatter_
from tomfisher.ops.scatter import gather

pytestmark = pytest.mark.usefixtures("on_cpu")


@settings(max_examples=80, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    share=st.floats(0, 1),
    layout=st.sampled_from(["contiguous", "transposed", "sliced"]),
    seed=st.integers(0, 1000),
)
def test_writes_these_bits_there_and_nothing_else(
    dtype: torch.dtype, rows: int, columns: int, share: float, layout: str, seed: int
) -> None:
    base = random_bits((rows, 2 * columns), dtype, seed)
    weight = {"contiguous": base, "transposed": base.t(), "sliced": base[:, ::2]}[layout]
    numel = weight.numel()
    index = torch.randperm(numel, generator=torch.Generator().manual_seed(seed))[: int(share * numel)]
    value = random_bits((len(index),), dtype, seed + 1)
    expected = bits(weight).flatten().clone()
    expected[index] = bits(value)
    outside = bits(base[:, 1::2]).clone()
    scatter_([weight], [index], [value])
    assert torch.equal(bits(weight).flatten(), expected)
    if layout == "sliced":
        assert torch.equal(bits(base[:, 1::2]), outside)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_then_scatter_restores_the_bits(dtype: torch.dtype) -> None:
    weights = [random_bits((13, 7), dtype), random_bits((5, 3, 4), dtype, 1).transpose(0, 2)]
    index = [torch.randperm(weight.numel())[:20] for weight in weights]
    before = [bits(weight).clone() for weight in weights]
    old = [gather(weight, at) for weight, at in zip(weights, index, strict=True)]
    scatter_(weights, index, [torch.zeros_like(values) for values in old])
    assert all(
        int(gather(weight, at).count_nonzero()) == 0 for weight, at in zip(weights, index, strict=True)
    )
    scatter_(weights, index, old)
    assert all(torch.equal(bits(weight), saved) for weight, saved in zip(weights, before, strict=True))


def test_empty_inputs() -> None:
    none = torch.empty(0, dtype=torch.int64)
    weight = torch.ones(2, 2)
    scatter_([], [], [])
    scatter_([weight, torch.empty(0, 3)], [none, none], [torch.empty(0), torch.empty(0)])
    assert torch.equal(weight, torch.ones(2, 2))


def test_a_parameter_is_written_without_autograd_but_with_a_new_version() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 3))
    loss = weight.square().sum()
    version = weight._version
    scatter_([weight], [torch.tensor([4])], [torch.tensor([9.0])])
    assert weight[1, 1] == 9.0
    assert weight.requires_grad and weight.is_leaf
    assert weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 12], "between 0 and 11, got 12"),
        ([-1, 3], "between 0 and 11, got -1"),
        ([5, 2, -3], "between 0 and 11, got -3"),
        ([3, 1, 3], "must not repeat a position, got 3 twice"),
        ([2, 2], "must not repeat a position, got 2 twice"),
    ],
)
def test_bad_positions_are_refused_before_any_write(index: list[int], message: str) -> None:
    good, bad = torch.zeros(3), torch.zeros(3, 4)
    with pytest.raises(ValueError, match=message):
        scatter_(
            [good, bad], [torch.tensor([0]), torch.tensor(index)], [torch.ones(1), torch.ones(len(index))]
        )
    assert not good.any() and not bad.any()


def test_other_misfits_are_refused_before_any_write() -> None:
    weight, index, value = torch.zeros(4), torch.tensor([1]), torch.ones(1)

    def refused(kind: type[Exception], match: str, w=None, i=None, v=None) -> None:
        with pytest.raises(kind, match=match):
            scatter_(
                [weight, weight if w is None else w],
                [index, index if i is None else i],
                [value, value if v is None else v],
            )

    refused(TypeError, r"weights\[1\] must be float16.*int64", w=torch.arange(4))
    refused(TypeError, r"indices\[1\] must be int64, got torch\.int32", i=index.int())
    refused(TypeError, r"values\[1\] must have its weight's dtype torch\.float32", v=value.double())
    refused(ValueError, r"values\[1\] must have the index's shape", v=torch.ones(2))
    refused(ValueError, r"indices\[1\] must be a vector", i=index[None], v=value[None])
    refused(ValueError, "one device", w=torch.zeros(4, device="meta"))
    refused(ValueError, "expanded view", w=torch.zeros(1).expand(4))
    with pytest.raises(ValueError, match="one length, got 1 and 0"):
        scatter_([weight], [], [])
    with pytest.raises(ValueError, match="one tensor per weight, got 0 for 1"):
        scatter_([weight], [index], [])
    assert not weight.any()


def test_many_tensors_are_checked_together_and_the_culprit_is_named() -> None:
    weights = [torch.zeros(5), torch.zeros(0), torch.zeros(3, 3), torch.zeros(2)]
    none = torch.empty(0, dtype=torch.int64)
    fine = [torch.tensor([0, 4]), none, torch.tensor([8, 0, 3]), torch.tensor([1])]
    scatter_(weights, fine, [torch.ones(len(index)) for index in fine])
    assert [int(weight.sum()) for weight in weights] == [2, 0, 3, 1]
    # a position beyond one tensor that would be inside the next
    for place, index, message in [
        (0, [0, 5], r"indices\[0\] must lie between 0 and 4, got 5"),
        (2, [8, 9], r"indices\[2\] must lie between 0 and 8, got 9"),
        (3, [-1], r"indices\[3\] must lie between 0 and 1, got -1"),
        (2, [2**63 - 1], r"indices\[2\] must lie between 0 and 8, got 9223372036854775807"),
        (2, [4, 1, 4], r"indices\[2\] must not repeat a position, got 4 twice"),
    ]:
        bad = [*fine[:place], torch.tensor(index), *fine[place + 1 :]]
        with pytest.raises(ValueError, match=message):
            scatter_(weights, bad, [torch.full((len(index),), 7.0) for index in bad])
    assert not any((weight == 7).any() for weight in weights)
