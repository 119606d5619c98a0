from __future__ import annotations

import math
import struct
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomfisher.ops import masked_fill_mean_, scatter_, weight_sums
from tomfisher.ops.masked_fill import NonFiniteMeanError, round_once, unmasked_sum
from truth import mean_without, neighbours

pytestmark = pytest.mark.usefixtures("on_cpu")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@settings(max_examples=120, deadline=None)
@given(
    numbers=st.lists(st.floats(-1000, 1000, width=16), min_size=2, max_size=40),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_fill_is_the_number_of_the_dtype_nearest_to_the_mean_without(numbers, dtype, data) -> None:
    weight = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    index = data.draw(
        st.lists(st.integers(0, len(numbers) - 1), min_size=1, max_size=len(numbers) - 1, unique=True)
    )
    before, exact = weight.clone(), mean_without(weight, index)
    (undo,) = masked_fill_mean_([weight], [torch.tensor(index)])
    filled = weight[index]
    assert len(set(filled.tolist())) == 1
    got = Fraction(float(filled[0]))
    # float64 accumulation may move an exact tie of the rounding, never further
    slack = abs(exact) / 2**50 + Fraction(1, 2**200)
    assert all(
        abs(got - exact) <= abs(other - exact) + slack for other in neighbours(float(filled[0]), dtype)
    )
    kept = [i for i in range(len(numbers)) if i not in index]
    assert torch.equal(weight[kept], before[kept])
    assert torch.equal(undo, before[index])


@pytest.mark.parametrize("dtype", DTYPES)
def test_undo_restores_every_bit(dtype: torch.dtype) -> None:
    weights = [torch.randn(31, 17).to(dtype), torch.randn(4, 5, 6).to(dtype)]
    payload = torch.tensor([-3], dtype=BITS[dtype.itemsize]).view(dtype)  # a NaN with its payload
    weights[0].view(-1)[7] = payload[0]
    before = [w.view(BITS[dtype.itemsize]).clone() for w in weights]
    index = [torch.tensor([7, 500, 0]), torch.arange(119)]
    undo = masked_fill_mean_(weights, index)
    assert all(torch.isfinite(w).all() for w in weights)
    scatter_(weights, index, undo)
    assert all(torch.equal(w.view(BITS[dtype.itemsize]), b) for w, b in zip(weights, before, strict=True))


def test_masked_entries_do_not_touch_the_mean() -> None:
    weight = torch.tensor([1e30, 1.0, 2.0, -1e38, math.inf, math.nan])
    masked_fill_mean_([weight], [torch.tensor([0, 3, 4, 5])])
    assert weight.tolist() == [1.5, 1.0, 2.0, 1.5, 1.5, 1.5]


def test_accumulation_is_not_in_the_weights_dtype() -> None:
    # the sum 40000 * 2 overflows float16, and 1 + 2^-24-sized steps are lost in float32
    half = torch.full((40_000,), 2.0, dtype=torch.float16)
    masked_fill_mean_([half], [torch.tensor([5])])
    assert half[5] == 2.0
    single = torch.full((3_000_001,), 1.0 + 2**-23)
    masked_fill_mean_([single], [torch.tensor([2_999_999])])
    assert single[2_999_999] == 1.0 + 2**-23


def test_long_tensors_cross_chunks_and_do_not_depend_on_threads() -> None:
    weight = torch.randn((1 << 20) * 2 + 12_345)
    index = torch.tensor([0, (1 << 20) - 1, 1 << 20, weight.numel() - 1, 77])
    keep = torch.ones(weight.numel(), dtype=torch.bool)
    keep[index] = False
    expected = math.fsum(weight[keep].double().tolist())
    threads = torch.get_num_threads()
    sums = []
    for count in (1, 2):
        torch.set_num_threads(count)
        sums.append(unmasked_sum(weight, index))
    torch.set_num_threads(threads)
    assert sums[0] == sums[1]
    assert sums[0] == pytest.approx(expected, rel=1e-12)


def test_non_contiguous_weights_use_row_major_positions() -> None:
    base = torch.arange(24.0).view(4, 6)
    transposed, sliced = base.clone().t(), base.clone()[:, ::2]
    masked_fill_mean_([transposed, sliced], [torch.tensor([1]), torch.tensor([3])])
    # row-major position 1 of the [6, 4] transpose is base[1, 0] = 6; of the [4, 3] slice 3 is base[1, 0] = 6
    assert transposed[0, 1] == pytest.approx((276 - 6) / 23)
    assert sliced[1, 0] == pytest.approx((base[:, ::2].sum().item() - 6) / 11)


def test_given_undo_buffers_are_filled_and_returned() -> None:
    weight, buffer = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(1)
    (undo,) = masked_fill_mean_([weight], [torch.tensor([2])], [buffer])
    assert undo is buffer and buffer.item() == 3.0
    with pytest.raises(ValueError, match=r"undo\[0\] must have the index's shape"):
        masked_fill_mean_([weight], [torch.tensor([0])], [torch.zeros(2)])
    with pytest.raises(TypeError, match=r"undo\[0\] must have its weight's dtype"):
        masked_fill_mean_([weight], [torch.tensor([0])], [torch.zeros(1).half()])


def test_k_0_and_empty_tensors_are_left_alone() -> None:
    none = torch.empty(0, dtype=torch.int64)
    weight = torch.tensor([math.nan, 1.0])
    undo = masked_fill_mean_([weight, torch.empty(0)], [none, none])
    assert [len(u) for u in undo] == [0, 0] and weight[1] == 1.0
    assert masked_fill_mean_([], []) == []


def test_refusals_come_before_the_first_write() -> None:
    good = torch.tensor([1.0, 3.0, 5.0])
    one = torch.tensor([0])
    with pytest.raises(ValueError, match=r"weights\[1\] is masked entirely \(2 entries\)"):
        masked_fill_mean_([good, torch.ones(2)], [one, torch.arange(2)])
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteMeanError, match=r"weights\[1\] holds NaN or infinity outside") as caught:
            masked_fill_mean_([good, torch.tensor([1.0, bad])], [one, one])
        assert caught.value.position == 1
    with pytest.raises(NonFiniteMeanError):
        masked_fill_mean_([torch.tensor([1.0, math.inf, -math.inf])], [one])
    assert good.tolist() == [1.0, 3.0, 5.0]


def bfloat16_nearest(value: float) -> float:
    """Ties-to-even rounding of a positive normal number to 8 significant bits, in integers."""
    exponent = math.frexp(value)[1]
    scaled = Fraction(value) / Fraction(2) ** (exponent - 8)
    return float(round(scaled) * Fraction(2) ** (exponent - 8))  # Python's round is ties-to-even


@settings(max_examples=300, deadline=None)
@given(st.integers(128, 255), st.integers(-60, 60), st.sampled_from([-1, 0, 1]), st.integers(30, 45))
def test_round_once_near_midpoints(significand: int, exponent: int, side: int, distance: int) -> None:
    # just beside the middle between two bfloat16 numbers, closer than float32 can tell
    middle = (significand + 0.5) * 2.0**exponent
    value = middle * (1 + side * 2.0**-distance)
    got = round_once(torch.tensor([value, -value], dtype=torch.float64), torch.bfloat16)
    assert got.tolist() == [bfloat16_nearest(value), -bfloat16_nearest(value)]


@settings(max_examples=200, deadline=None)
@given(st.floats(-60000, 60000, allow_nan=False))
def test_round_once_to_float16_agrees_with_ieee(value: float) -> None:
    got = round_once(torch.tensor(value, dtype=torch.float64), torch.float16)
    assert float(got) == struct.unpack("e", struct.pack("e", value))[0]


def test_the_mean_is_rounded_once_to_bfloat16() -> None:
    # the mean 1 + 2^-8 + 2^-32 lies just above the middle of two bfloat16 numbers, unseen by float32
    weight = torch.tensor([4.0, 2**-6, 2**-30, 0.0, 9.0], dtype=torch.bfloat16)
    masked_fill_mean_([weight], [torch.tensor([4])])
    assert weight[4].item() == 1 + 2**-7


def ulp(value: float, dtype: torch.dtype) -> float:
    """Distance from the number of the dtype that holds `value` to the next away from zero."""
    at = torch.tensor(abs(value), dtype=torch.float64).to(dtype)
    return float(torch.nextafter(at, torch.tensor(math.inf, dtype=dtype)) - at)


@settings(max_examples=120, deadline=None)
@given(
    numbers=st.lists(st.floats(-1000, 1000, width=16), min_size=2, max_size=40),
    scale=st.sampled_from([0, 15, 40, 100]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    data=st.data(),
)
def test_with_sums_the_fill_is_within_the_stated_slack(numbers, scale, dtype, data) -> None:
    weight = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    index = data.draw(
        st.lists(st.integers(0, len(numbers) - 1), min_size=1, max_size=len(numbers) - 1, unique=True)
    )
    weight[index[0]] *= 2.0**scale  # a masked entry that dwarfs the others
    exact = mean_without(weight, index)
    masked_fill_mean_([weight], [torch.tensor(index)], sums=weight_sums([weight]))
    got = Fraction(float(weight[index[0]]))
    # half a unit for the rounding, a quarter for the sums; float64 itself has the sums' errors
    slack = Fraction(3, 4) if dtype != torch.float64 else Fraction(64)
    assert abs(got - exact) <= slack * Fraction(ulp(float(exact), dtype)) + abs(exact) / 2**50


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_that_cancel_or_drown_are_not_used(dtype: torch.dtype) -> None:
    large = {torch.float16: 6e4, torch.bfloat16: 1e30, torch.float32: 1e30, torch.float64: 1e300}[dtype]
    drowned = torch.tensor([large, 1.0, 1.0, 4.0]).double().to(dtype)
    drowned[0] = large
    infinite = torch.tensor([math.inf, 2.0, 4.0], dtype=dtype)
    near_zero = torch.tensor([3.0, 1.0, -1.0, 2.0**-14, 0.0], dtype=dtype)
    weights, zero = [drowned, infinite, near_zero], torch.tensor([0])
    masked_fill_mean_(weights, [zero] * 3, sums=weight_sums(weights))
    assert [float(weight[0]) for weight in weights] == [2.0, 3.0, 2.0**-16]


def test_with_trusted_sums_only_the_masked_entries_are_read() -> None:
    weight = torch.arange(1.0, 9.0)
    told = torch.tensor(
        [[1036.0, 1036.0]], dtype=torch.float64
    )  # not this tensor's: its entries are not looked at
    masked_fill_mean_([weight], [torch.tensor([0, 7])], sums=told)
    assert weight[0] == weight[7] == (1036 - 9) / 6


def test_sums_that_do_not_fit_are_refused() -> None:
    weight, index = torch.ones(3), torch.tensor([0])
    with pytest.raises(TypeError, match=r"sums must be float64, got torch\.float32"):
        masked_fill_mean_([weight], [index], sums=torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"sums must have shape \(1, 2\) on cpu, got \(2, 2\)"):
        masked_fill_mean_([weight], [index], sums=torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(NonFiniteMeanError):
        bad = torch.tensor([1.0, math.inf, 1.0])
        masked_fill_mean_([bad], [index], sums=weight_sums([bad]))
