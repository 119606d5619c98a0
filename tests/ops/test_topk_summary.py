"""One pass for both: what it selects is what `topk` selects, what it counts is what Python's own arithmetic counts."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tomfisher.ops import (
    Span,
    Summary,
    TopK,
    TopKSummary,
    resolve,
    summary,
    topk,
    topk_summary,
)

HAS_CPP = importlib.util.find_spec("tomfisher._C") is not None
IMPLS = ["reference"] + ["cpp"] * HAS_CPP
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
THRESHOLDS = [0.0, -0.5, 2.0**-149, 0.25, 3.0, math.inf, -math.inf]
CUT = 1 << 16  # up to here every selection is one streaming pass, beyond it from n / 128 on it counts


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same(found: TopK | Summary, expected: TopK | Summary) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def check(values: torch.Tensor, thresholds: list[float], k: int, found: TopKSummary) -> None:
    """Against a stable sort and against counts of exact numbers, which share nothing with the implementations."""
    numbers = values.flatten().double().tolist()
    order = sorted(range(len(numbers)), key=lambda i: (-numbers[i], i))[:k]
    assert found.top.indices.tolist() == order
    assert found.top.values.tolist() == [numbers[i] for i in order]
    assert found.summary.above.tolist() == [sum(x > bound for x in numbers) for bound in thresholds]
    least = math.frexp(torch.finfo(values.dtype).smallest_normal)[1]
    bins = Counter(0 if x < 0 else 1 if x == 0 else max(2, 3 + math.frexp(x)[1] - least) for x in numbers)
    assert {i: n for i, n in enumerate(found.summary.histogram.tolist()) if n} == bins
    assert found.summary.min.item() == min(numbers, default=math.inf)
    assert found.summary.max.item() == max(numbers, default=-math.inf)


def make(shape: str, n: int, dtype: torch.dtype) -> torch.Tensor:
    g = torch.Generator().manual_seed(n)
    ramp = torch.arange(n, dtype=torch.float64) / max(n, 1)
    uniform = torch.rand(n, generator=g, dtype=torch.float64)
    values = {
        "normal": torch.randn(n, generator=g, dtype=torch.float64),
        "equal": torch.full((n,), 0.375, dtype=torch.float64),
        "ascending": ramp,
        "descending": -ramp,
        "few": torch.randint(-2, 3, (n,), generator=g).double(),
        "zeros of both signs": torch.where(uniform < 0.5, 0.0, -0.0).double(),
        "subnormal": (uniform * 9).floor() * torch.finfo(dtype).smallest_normal / 8,
    }[shape]
    return values.to(dtype)


SHAPES = ["normal", "equal", "ascending", "descending", "few", "zeros of both signs", "subnormal"]


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=100, deadline=None)
@given(
    raw=st.binary(max_size=400), dtype=st.sampled_from(DTYPES), where=st.floats(0, 1), count=st.integers(1, 4)
)
@example(raw=b"", dtype=torch.bfloat16, where=0.0, count=1)
def test_any_finite_bit_patterns(impl: str, raw: bytes, dtype: torch.dtype, where: float, count: int) -> None:
    size = dtype.itemsize
    values = torch.frombuffer(bytearray(raw[: len(raw) // size * size] or b"\0" * size), dtype=dtype)
    values = values[torch.isfinite(values)]
    n = len(values)
    thresholds = [*THRESHOLDS, *values[:2].tolist()]
    with threads(count):
        for k in {0, min(1, n), int(where * n), n // 2, n}:
            check(values, thresholds, k, topk_summary(values, k, thresholds, impl))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_CPP, reason="the C++ extension is not built")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "k"), [(CUT - 3, CUT // 2), (1_100_003, 0), (1_100_003, 900), (1_100_003, 20_000)]
)
def test_both_methods_and_any_thread_count(shape: str, dtype: torch.dtype, n: int, k: int) -> None:
    values = make(shape, n, dtype)
    counted, selected = summary(values, THRESHOLDS, "reference"), topk(values, k, "reference")
    assert int(counted.histogram.sum()) == n
    for count in (1, 2, 4):
        with threads(count):
            found = topk_summary(values, k, THRESHOLDS, "cpp")
        assert same(found.top, selected) and same(found.summary, counted), count


@pytest.mark.parametrize("impl", IMPLS)
def test_a_pass_that_is_given_up_counts_nothing_twice(tmp_path: Path, impl: str) -> None:
    """In ascending order the bound keeps rising: the streaming pass over the file is void and counting takes over."""
    values, path = torch.arange(3_000_000, dtype=torch.float32), tmp_path / "x"
    path.write_bytes(values.numpy().tobytes())
    span = Span(path, 0, (len(values),), torch.float32)
    found = topk_summary(span, 100, [5.0, 2_999_998.0], impl)
    assert found.summary.above.tolist() == [2_999_994, 1]
    assert int(found.summary.histogram.sum()) == len(values)
    assert found.top.indices.tolist() == list(range(2_999_999, 2_999_899, -1))


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.one_of(st.integers(0, 300), st.integers(CUT, CUT + 9), st.just(700_000)),
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from(SHAPES),
    gap=st.integers(0, 9),
    where=st.floats(0, 1),
    count=st.integers(1, 4),
)
def test_from_a_file(
    tmp_path: Path, impl: str, n: int, dtype: torch.dtype, shape: str, gap: int, where: float, count: int
) -> None:
    values = make(shape, n, dtype)
    path = tmp_path / "x"
    path.write_bytes(b"x" * gap + values.view(torch.uint8).numpy().tobytes() + b"yz")
    span = Span(path, gap, (n,), dtype)
    counted = summary(span, THRESHOLDS, "reference")
    with threads(count):
        for k in {0, min(1, n), n // 200, int(where * n), n}:
            found = topk_summary(span, k, THRESHOLDS, impl)
            assert same(found.top, topk(span, k, "reference"))
            assert same(found.summary, counted)


@pytest.mark.parametrize("impl", IMPLS)
def test_lists_shapes_and_strides(impl: str) -> None:
    tensors = [torch.randn(7, 9).t(), torch.empty(0), torch.randn(3, 8)[:, ::3], torch.tensor(2.0)]
    counts = [5, 0, 9, 1]
    found = topk_summary(tensors, counts, [0.1, -3.0], impl)
    for tensor, k, both in zip(tensors, counts, found, strict=True):
        check(tensor, [0.1, -3.0], k, both)
    assert topk_summary([], 2, [1.0], impl) == []
    assert [len(both.top.values) for both in topk_summary([torch.ones(3), torch.ones(4)], 2, impl=impl)] == [
        2,
        2,
    ]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_whatever_k(impl: str, dtype: torch.dtype, bad: float) -> None:
    values = torch.ones(300, 300, dtype=dtype)
    values[1, 2] = values[200, 3] = bad
    for k in (0, 5, 60_000):  # nothing selected, streaming, counting
        with pytest.raises(ValueError, match=rf"values\[1\] must be finite.*{bad} at flat index 302"):
            topk_summary([torch.ones(2, dtype=dtype), values], [0, k], [0.5], impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_bad_requests_are_refused(tmp_path: Path, impl: str) -> None:
    ones = torch.ones(4)
    with pytest.raises(TypeError, match=r"share one dtype, got .*Call topk_summary once per dtype"):
        topk_summary([ones, ones.double()], 1, impl=impl)
    with pytest.raises(ValueError, match=r"share one device, got .*Call topk_summary once per device"):
        topk_summary([ones, torch.ones(2, device="meta")], 1, impl=impl)
    with pytest.raises(ValueError, match="without NaN"):
        topk_summary(ones, 1, [math.nan], impl)
    with pytest.raises(ValueError, match="k must be between 0 and 4"):
        topk_summary(ones, 5, impl=impl)
    with pytest.raises(TypeError, match=r"values must be float16.*torch\.int64"):
        topk_summary(torch.arange(3), 1, impl=impl)
    path = tmp_path / "x"
    path.write_bytes(torch.tensor([1.0, math.nan, 2.0]).numpy().tobytes())
    with pytest.raises(ValueError, match="NaN or infinity at flat index 1"):
        topk_summary(Span(path, 0, (3,), torch.float32), 1, impl=impl)
    with pytest.raises(ValueError, match="do not lie within"):
        topk_summary(Span(path, 0, (4,), torch.float32), 1, impl=impl)
    with pytest.raises(ValueError, match="k must be between 0 and 1"):
        topk_summary(Span(path, 0, (1,), torch.float32), 2, impl=impl)
    with pytest.raises(ValueError, match="without NaN"):
        topk_summary(Span(path, 0, (1,), torch.float32), 1, [math.nan], impl)
    with pytest.raises(FileNotFoundError):
        topk_summary(Span(tmp_path / "nothing", 0, (0,), torch.float32), 0, impl=impl)


@pytest.mark.skipif(not HAS_CPP, reason="the C++ extension is not built")
def test_auto_takes_the_pass_that_does_both() -> None:
    for op in ("topk_summary", "topk_stored"):
        assert resolve(op, "auto", torch.device("cpu"))[0] == "cpp"
