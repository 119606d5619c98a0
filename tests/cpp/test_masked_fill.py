from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bits import DTYPES, INTEGERS, bits
from tomfisher.ops import masked_fill_mean_, resolve, scatter_
from tomfisher.ops.masked_fill import NonFiniteMeanError, round_once
from tomfisher.ops.weight_sums import weight_sums
from truth import mean_without, neighbours

pytest.importorskip("tomfisher._C")
LEVELS = ["scalar", "avx2", "avx512"]
HERE = LEVELS[
    : 1 + ["scalar", "avx2", "avx512", "avx512bf16", "amx"].index(torch.ops.tomfisher_cpp.cpu_isa())
]


def fill(
    weights: list[Tensor], indices: list[Tensor], known: bool, **settings
) -> tuple[Tensor, list[Tensor]]:
    """The registered operation itself; settings are `isa` and `threads`."""
    undo = [weight.new_empty(len(index)) for weight, index in zip(weights, indices, strict=True)]
    sums = torch.ops.tomfisher_cpp.weight_sums(weights, 1) if known else None
    threads, isa = settings.get("threads", 2), settings.get("isa", "")
    return torch.ops.tomfisher_cpp.masked_fill_mean_(weights, indices, undo, sums, threads, isa), undo


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("known", [False, True])
@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.floats(-1000, 1000, width=16), min_size=2, max_size=60),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_fill_is_the_nearest_number_to_the_exact_mean(isa, known, numbers, dtype, data) -> None:
    weight = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    index = data.draw(
        st.lists(st.integers(0, len(numbers) - 1), min_size=1, max_size=len(numbers) - 1, unique=True)
    )
    before, exact = weight.clone(), mean_without(weight, index)
    means, (undo,) = fill([weight], [torch.tensor(index)], known, isa=isa)
    assert torch.equal(bits(round_once(means, dtype)), bits(weight[index[:1]]))
    got = Fraction(float(weight[index[0]]))
    beside = neighbours(float(got), dtype)
    # with known sums the mean may be off by a quarter of a unit in the last place before it is rounded
    gap = max(abs(other - got) for other in beside)
    slack = gap / 2 if known else abs(exact) / 2**50 + Fraction(1, 2**200)
    assert all(abs(got - exact) <= abs(other - exact) + slack for other in beside)
    kept = [i for i in range(len(numbers)) if i not in index]
    assert len(set(weight[index].tolist())) == 1
    assert torch.equal(bits(weight[kept]), bits(before[kept])) and torch.equal(
        bits(undo), bits(before[index])
    )


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_tensors_for_any_share_threads_and_instruction_set(dtype, share) -> None:
    generator = torch.Generator().manual_seed(1)
    original = (0.01 + torch.randn(3 * 65_536 + 777, generator=generator)).to(dtype)
    index = torch.randperm(original.numel(), generator=generator)[: max(1, int(share * original.numel()))]
    keep = torch.ones(original.numel(), dtype=torch.bool).index_fill(0, index, False)
    mean = math.fsum(original[keep].double().tolist()) / int(keep.sum())
    fills = []
    for known in (False, True):
        for isa in HERE:
            for threads in (1, 2, 3, 4):
                weight = original.clone()
                _, (undo,) = fill([weight], [index], known, isa=isa, threads=threads)
                assert torch.equal(bits(undo), bits(original[index]))
                assert torch.equal(weight[keep], original[keep])
                fills.append(weight[index])
    assert all(torch.equal(fills[0], other) for other in fills)
    eps = torch.finfo(dtype).eps
    assert fills[0][0].item() == pytest.approx(mean, rel=max(eps / 2, 2.0**-46) * 1.001)


@pytest.mark.parametrize("known", [False, True])
def test_ties_and_subnormals_are_rounded_once_to_even(known: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(-(1 << 15), 1 << 15, (6000,), generator=generator).to(torch.int16)
    small = torch.randint(0, 1100, (2000,), generator=generator).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        a = torch.cat([raw, small]).view(dtype)
        a = a[torch.isfinite(a)]
        b = torch.nextafter(a, torch.zeros_like(a))  # the mean of two neighbours is a tie
        weights = list(torch.stack([a, b, torch.zeros_like(a)], 1).unbind())
        assert fill(weights, [torch.tensor([2])] * len(weights), known)[0].isfinite().all()
        even = torch.where(bits(a) % 2 == 0, a, b)
        got = torch.stack(weights)[:, 2]
        assert torch.equal(got, torch.where((a == 0) & (b == 0), torch.zeros_like(a), even))
    pairs = raw.view(torch.float16)[torch.isfinite(raw.view(torch.float16))][:4000].view(-1, 2)
    weights = list(torch.cat([pairs, torch.zeros(len(pairs), 1).half()], 1).unbind())
    fill(weights, [torch.tensor([2])] * len(weights), known)
    expected = pairs.double().mean(1).numpy().astype(np.float16)  # numpy rounds float64 to float16 once
    assert torch.equal(torch.stack(weights)[:, 2], torch.from_numpy(expected))


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_masked_giant_and_a_vanishing_sum_are_seen(dtype, known) -> None:
    giant = torch.ones(1000, dtype=dtype)
    giant[7] = 1e30
    nothing = torch.randn(500, dtype=dtype)
    nothing = torch.cat([nothing, -nothing, torch.tensor([2.0**-20, 3.0], dtype=dtype)])
    fill([giant, nothing], [torch.tensor([7]), torch.tensor([1001])], known)
    assert giant[7] == 1.0
    assert nothing[1001].item() == pytest.approx(2.0**-20 / 1001, rel=1e-6)


@pytest.mark.parametrize("exponent", range(6, 39, 2))
def test_a_difference_of_sums_is_used_only_where_it_is_good_enough(exponent: int) -> None:
    weight = 0.1 + torch.randn(400, generator=torch.Generator().manual_seed(exponent))
    weight[11] = -(10.0**exponent)
    exact = mean_without(weight, [11])
    assert fill([weight], [torch.tensor([11])], known=True)[0].isfinite()
    got = Fraction(weight[11].item())
    unit = max(abs(other - got) for other in neighbours(float(got), torch.float32))
    assert abs(got - exact) <= Fraction(3, 4) * unit


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_outside_the_mask_alone(known: bool, bad: float) -> None:
    weights = [torch.tensor([1.0, 2.0, bad]), torch.tensor([3.0, bad, 5.0]), torch.tensor([bad, bad, 1.0])]
    before = [weight.clone() for weight in weights]
    means, _ = fill(weights, [torch.tensor([2]), torch.tensor([0]), torch.tensor([2])], known)
    assert means.isfinite().tolist() == [True, False, False]
    assert all(torch.equal(bits(w), bits(b)) for w, b in zip(weights, before, strict=True))
    assert fill(weights[:1], [torch.tensor([2])], known)[0].isfinite()
    assert weights[0].tolist() == [1.0, 2.0, 1.5]


def test_infinite_sums_from_elsewhere_are_not_trusted() -> None:
    weight = torch.tensor([1.0, 2.0, math.inf])
    sums = torch.tensor([[math.inf, math.inf]], dtype=torch.float64)
    masked_fill_mean_([weight], [torch.tensor([2])], sums=sums, impl="cpp")
    assert weight.tolist() == [1.0, 2.0, 1.5]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_public_operation_with_any_strides_and_undo_of_every_bit(dtype, known) -> None:
    assert resolve("masked_fill_mean_", "auto", torch.device("cpu"))[0] == "cpp"
    base = torch.randn(24, 30).to(dtype)
    weights = [
        base[:10],
        base[10:14].t(),
        base[14:, ::2],
        torch.randn(5).to(dtype),
        torch.empty(0, 3).to(dtype),
    ]
    weights[3][2] = torch.tensor([-3], dtype=INTEGERS[dtype.itemsize]).view(dtype)[
        0
    ]  # a NaN with its payload
    index = [
        torch.tensor([5, 299, 0]),
        torch.tensor([1, 119]),
        torch.tensor([17, 3, 149]),
        torch.tensor([2]),
        torch.empty(0, dtype=torch.int64),
    ]
    copies = [weight.clone() for weight in weights]
    before, spare = bits(base).clone(), bits(weights[3]).clone()
    sums = weight_sums(weights, impl="cpp") if known else None
    undo = masked_fill_mean_(weights, index, sums=sums, impl="cpp")
    masked_fill_mean_(copies, index, impl="reference")
    assert all(torch.equal(w, c) for w, c in zip(weights, copies, strict=True))
    scatter_(weights, index, undo, impl="cpp")
    assert torch.equal(bits(base), before) and torch.equal(bits(weights[3]), spare)


def test_a_failure_names_the_position_and_leaves_views_as_they_were() -> None:
    base = torch.ones(4, 6)
    base[0, 2] = math.nan
    before = bits(base).clone()
    with pytest.raises(NonFiniteMeanError, match=r"weights\[1\]"):
        masked_fill_mean_([base[2:], base.t()], [torch.tensor([0]), torch.tensor([1])], impl="cpp")
    assert torch.equal(bits(base), before)


@pytest.mark.parametrize(
    ("weights", "indices", "undo", "message"),
    [
        ([torch.zeros(4)], [torch.tensor([4])], [torch.zeros(1)], "Position 4 is outside"),
        ([torch.zeros(4)], [torch.tensor([-1])], [torch.zeros(1)], "Position -1 is outside"),
        ([torch.zeros(4)], [torch.tensor([1])], [torch.zeros(2)], "one value per index"),
        ([torch.zeros(4)], [torch.tensor([1])], [torch.zeros(1).half()], "of one dtype"),
        ([torch.zeros(4, 4).t()[:2]], [torch.tensor([1])], [torch.zeros(1)], "contiguous"),
        ([torch.zeros(1)], [torch.tensor([0])], [torch.zeros(1)], "masked entirely"),
        ([torch.zeros(4)], [torch.tensor([0]).int()], [torch.zeros(1)], "int64"),
        ([torch.zeros(4)], [], [], "one length"),
    ],
)
def test_what_could_reach_out_of_bounds_is_refused_once_more(weights, indices, undo, message) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.tomfisher_cpp.masked_fill_mean_(weights, indices, undo, None, 1)
    with pytest.raises(RuntimeError, match="sums must be"):
        torch.ops.tomfisher_cpp.masked_fill_mean_(weights, weights, weights, torch.zeros(1).double(), 1)


def test_opcheck() -> None:
    weights, index = [torch.randn(3, 4), torch.randn(7).half()], [torch.tensor([1, 5]), torch.tensor([0])]
    undo = [torch.zeros(2), torch.zeros(1).half()]
    for sums in (None, weight_sums(weights)):
        torch.library.opcheck(
            torch.ops.tomfisher.masked_fill_mean_.default, (weights, index, undo, sums, "cpp")
        )
