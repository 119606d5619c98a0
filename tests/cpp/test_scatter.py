from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bits import DTYPES, bits, random_bits
from tomfisher.ops import resolve, scatter_

pytest.importorskip("tomfisher._C")


@settings(max_examples=80, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    share=st.floats(0, 1),
    layout=st.sampled_from(["contiguous", "transposed", "sliced", "column", "permuted"]),
    seed=st.integers(0, 1000),
)
def test_writes_these_bits_there_and_nothing_else(dtype, rows, columns, share, layout, seed) -> None:
    base = random_bits((rows, 2 * columns), dtype, seed)
    weight = {
        "contiguous": base,
        "transposed": base.t(),
        "sliced": base[:, ::2],
        "column": base[:, 1],
        "permuted": base.view(rows, 2, columns).permute(2, 0, 1),
    }[layout]
    index = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(seed))
    index = index[: int(share * weight.numel())]
    value = random_bits((len(index),), dtype, seed + 1)
    expected_base, expected = bits(base).clone(), bits(weight).flatten().clone()
    expected[index] = bits(value)
    named = torch.zeros(weight.numel(), dtype=torch.bool).index_fill(0, index, True)
    untouched = torch.ones(base.numel(), dtype=torch.bool)
    where = torch.arange(base.numel()).as_strided(weight.shape, weight.stride(), weight.storage_offset())
    untouched[where.reshape(-1)[named]] = False
    scatter_([weight], [index], [value], impl="cpp")
    assert torch.equal(bits(weight).flatten(), expected)
    assert torch.equal(bits(base).flatten()[untouched], expected_base.flatten()[untouched])


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_many_long_lists_at_once(threads: int) -> None:
    assert resolve("scatter_", "auto", torch.device("cpu"))[0] == "cpp"
    weights = [torch.zeros(n, dtype=dtype) for n, dtype in zip((30_000, 1, 9_000, 0), DTYPES, strict=True)]
    index = [torch.randperm(weight.numel())[: weight.numel() // 2 + 1] for weight in weights]
    values = [torch.arange(1, len(at) + 1).to(w.dtype) for w, at in zip(weights, index, strict=True)]
    torch.ops.tomfisher_cpp.scatter_(weights, index, values, threads)
    for weight, at, value in zip(weights, index, values, strict=True):
        assert torch.equal(weight[at], value)
        assert int(weight.count_nonzero()) == int(value.count_nonzero())


def test_a_parameter_is_written_without_autograd_but_with_a_new_version() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 3))
    loss = weight.square().sum()
    version = weight._version
    scatter_([weight], [torch.tensor([4])], [torch.tensor([9.0])], impl="cpp")
    assert weight[1, 1] == 9.0 and weight.requires_grad and weight.is_leaf
    assert weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("weights", "indices", "values", "message"),
    [
        ([torch.zeros(4)], [torch.tensor([4])], [torch.ones(1)], "Position 4 is outside"),
        ([torch.zeros(4)], [torch.tensor([-1])], [torch.ones(1)], "Position -1 is outside"),
        ([torch.zeros(0)], [torch.tensor([0])], [torch.ones(1)], "Position 0 is outside"),
        ([torch.zeros(4)], [torch.tensor([1])], [torch.ones(2)], "one value per index"),
        ([torch.zeros(4)], [torch.tensor([1])], [torch.ones(1).half()], "of one dtype"),
        ([torch.zeros(4, 4).t()], [torch.tensor([1])], [torch.ones(1)], "contiguous"),
        ([torch.zeros(4)], [torch.tensor([1]).int()], [torch.ones(1)], "int64"),
        ([torch.zeros(4)], [torch.tensor([1])], [], "one length"),
    ],
)
def test_what_could_reach_out_of_bounds_is_refused_once_more(weights, indices, values, message) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.tomfisher_cpp.scatter_(weights, indices, values, 1)
    assert not weights[0].any()


def test_opcheck() -> None:
    weights, index = [torch.randn(3, 4), torch.randn(7).half()], [torch.tensor([1, 5]), torch.tensor([0])]
    values = [torch.ones(2), torch.ones(1).half()]
    torch.library.opcheck(torch.ops.tomfisher.scatter_.default, (weights, index, values, "cpp"))
