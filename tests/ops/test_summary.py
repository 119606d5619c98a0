"""Summaries against Python's exact arithmetic: histogram, extremes, counts; in memory and from a file."""

from __future__ import annotations

import importlib.util
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tomfisher.ops import Span, Summary, summary

IMPLS = ["reference"] + (["cpp"] if importlib.util.find_spec("tomfisher._C") else [])
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 2.0, math.inf, -math.inf, 5e-324, -5e-324, 2.0**-149, 2.0**-133, 6e-8]),
    st.floats(allow_nan=False),
    st.floats(-4, 4),
)


def bin_of(number: float, dtype: torch.dtype) -> int:
    """The bin by the number's own binary exponent: 0 negative, 1 zero, 2 subnormal, 3 the smallest normal."""
    if number <= 0:
        return 1 if number == 0 else 0
    least = math.frexp(torch.finfo(dtype).smallest_normal)[1]
    return max(2, 3 + math.frexp(number)[1] - least)


def check(values: torch.Tensor, thresholds: list[float], found: Summary) -> None:
    numbers = values.flatten().double().tolist()
    bins = [0] * len(found.histogram)
    for number in numbers:
        bins[bin_of(number, values.dtype)] += 1
    assert found.histogram.tolist() == bins
    assert found.above.tolist() == [sum(number > x for number in numbers) for x in thresholds]
    assert found.min.dtype == found.max.dtype == values.dtype
    extremes = [found.min.item(), found.max.item()]
    assert extremes == [min(numbers, default=math.inf), max(numbers, default=-math.inf)]
    assert all(math.copysign(1, x) == 1 for x in extremes if x == 0)


def finite(raw: bytes, dtype: torch.dtype) -> torch.Tensor:
    size = dtype.itemsize
    values = torch.frombuffer(bytearray(raw[: len(raw) // size * size] or b"\0" * size), dtype=dtype)
    return values[torch.isfinite(values)]


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=150, deadline=None)
@given(
    raw=st.binary(max_size=400),
    dtype=st.sampled_from(DTYPES),
    thresholds=st.lists(NUMBERS, max_size=5),
    near=st.integers(0, 99),
)
@example(raw=b"", dtype=torch.float16, thresholds=[], near=0)
def test_any_finite_bit_patterns(
    impl: str, raw: bytes, dtype: torch.dtype, thresholds: list[float], near: int
) -> None:
    values = finite(raw, dtype)
    if len(values):  # an entry itself is not above itself, the next double below it has it above
        entry = values[near % len(values)].item()
        thresholds = [*thresholds, entry, math.nextafter(entry, -math.inf), math.nextafter(entry, math.inf)]
    check(values, thresholds, summary(values, thresholds, impl))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_power_of_two_opens_a_bin(impl: str, dtype: torch.dtype) -> None:
    edges = summary(torch.zeros(1, dtype=dtype), impl=impl).edges
    info = torch.finfo(dtype)
    assert edges[:4].tolist() == [-math.inf, 0, info.smallest_normal * info.eps, info.smallest_normal]
    assert (edges[4:-1] == 2 * edges[3:-2]).all() and edges[-2] <= info.max < edges[-1]
    powers = edges[3:-1].to(dtype)
    integers = powers.view(INTEGERS[dtype.itemsize])
    below = (integers - 1).view(dtype)
    found = summary([powers, below], impl=impl)
    assert found[0].histogram.tolist() == [0, 0, 0] + [1] * len(powers)
    assert found[1].histogram.tolist() == [0, 0] + [1] * len(powers) + [0]


@pytest.mark.parametrize("impl", IMPLS)
def test_zeros_of_both_signs_and_subnormals(impl: str) -> None:
    values = torch.tensor([-0.0, 0.0, -0.0, 1e-45, -1e-45, 1e-39])
    found = summary(values, [0.0, -0.0, -1e-46, 2.0**-149, -1e-45], impl)
    assert found.histogram[:4].tolist() == [1, 3, 2, 0] and int(found.histogram.sum()) == 6
    assert found.above.tolist() == [2, 2, 5, 1, 5]
    check(values[:3], [], summary(values[:3], impl=impl))


@pytest.mark.skipif("cpp" not in IMPLS, reason="the C++ extension is not built")
@pytest.mark.parametrize("dtype", DTYPES)
def test_thread_counts_and_implementations_agree(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    values = torch.randn(1_200_003, generator=g, dtype=torch.float64).mul_(3).exp_().to(dtype)
    values = values.clamp_(max=60_000)
    values[::7].zero_()
    values[::11].neg_()
    thresholds = [0.5, -1.0, 1e-3, 0.0]
    expected = summary(values, thresholds, "reference")
    assert int(expected.histogram.sum()) == len(values)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found = summary(values, thresholds, "cpp")
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif("cpp" not in IMPLS, reason="the C++ extension is not built")
def test_flushing_denormals_changes_no_count() -> None:
    values = torch.tensor([1e-45, 3e-45, 0.0, -1e-45, 1.0])
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        found = summary(values, [1e-45, -5e-324], "cpp")
    finally:
        torch.set_flush_denormal(False)
    check(values, [1e-45, -5e-324], found)


def test_thresholds_are_not_rounded_to_the_dtype() -> None:
    third = torch.tensor([1 / 3], dtype=torch.float32)
    exact = Fraction(third.item())
    for impl in IMPLS:
        found = summary(third, [1 / 3], impl)
        assert found.above.item() == (exact > Fraction(1 / 3))
        assert summary(third.half(), [0.33325195], impl).above.item() == 1


@pytest.mark.parametrize("impl", IMPLS)
def test_lists_shapes_and_strides(impl: str) -> None:
    tensors = [torch.randn(7, 9).t(), torch.empty(0), torch.randn(3, 8)[:, ::3], torch.tensor(2.0)]
    for tensor, found in zip(tensors, summary(tensors, [0.1, -3], impl), strict=True):
        check(tensor, [0.1, -3], found)
    assert summary([], [1.0], impl) == []


@pytest.mark.parametrize("impl", IMPLS)
def test_bad_input_is_refused(impl: str) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        values = torch.ones(4, 5)
        values[1, 2] = values[3, 3] = bad
        with pytest.raises(ValueError, match=rf"values\[1\] must be finite.*{bad} at flat index 7"):
            summary([torch.ones(2), values], [0.5], impl)
    with pytest.raises(ValueError, match="without NaN"):
        summary(torch.ones(2), [1.0, math.nan], impl)
    with pytest.raises(TypeError, match=r"values must be float16.*torch\.int64"):
        summary(torch.arange(3), impl=impl)
    with pytest.raises(TypeError, match=r"values must share one dtype, got .*Call summary once per dtype"):
        summary([torch.ones(2), torch.ones(2).half()], impl=impl)
    with pytest.raises(ValueError, match=r"values must share one device, got .*Call summary once per device"):
        summary([torch.ones(2), torch.ones(2, device="meta")], impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.one_of(st.integers(0, 300), st.just(600_000)), dtype=st.sampled_from(DTYPES), gap=st.integers(0, 9)
)
def test_from_a_file_as_in_memory(tmp_path: Path, impl: str, n: int, dtype: torch.dtype, gap: int) -> None:
    values = torch.randn(n).to(dtype)
    path = tmp_path / "x"
    path.write_bytes(b"x" * gap + values.view(torch.uint8).numpy().tobytes() + b"yz")
    found = summary(Span(path, gap, (n,), dtype), [0.25, -1.0], impl)
    expected = summary(values, [0.25, -1.0], "reference")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("impl", IMPLS)
def test_bad_files_are_refused(tmp_path: Path, impl: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(torch.tensor([1.0, math.nan, 2.0]).numpy().tobytes())
    with pytest.raises(ValueError, match="NaN or infinity at flat index 1"):
        summary(Span(path, 0, (3,), torch.float32), impl=impl)
    with pytest.raises(ValueError, match="do not lie within"):
        summary(Span(path, 0, (4,), torch.float32), impl=impl)
    with pytest.raises(TypeError, match=r"got torch\.int8"):
        summary(Span(path, 0, (1,), torch.int8), impl=impl)
    with pytest.raises(ValueError, match="without NaN"):
        summary(Span(path, 0, (1,), torch.float32), [math.nan], impl)
    with pytest.raises(FileNotFoundError):
        summary(Span(tmp_path / "nothing", 0, (0,), torch.float32), impl=impl)
