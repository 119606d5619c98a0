"""The C++ selection against a sort: values, ties, thread counts, instruction sets, lists."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truth import largest

pytest.importorskip("tomfisher._C", reason="the C++ extension is not built")

from tomfisher.ops import resolve, topk, topk_across

OPS = torch.ops.tomfisher_cpp
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def make(shape: str, n: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """n numbers of one of the distributions that selections stumble over."""
    g = torch.Generator().manual_seed(seed)
    uniform = torch.rand(n, generator=g, dtype=torch.float64)
    ramp = torch.arange(n, dtype=torch.float64) / max(n, 1)
    values = {
        "normal": torch.randn(n, generator=g, dtype=torch.float64),
        "log-normal": torch.randn(n, generator=g, dtype=torch.float64).exp(),
        "equal": torch.full((n,), 0.5, dtype=torch.float64),
        "few": torch.randint(-2, 3, (n,), generator=g).double(),
        "sorted": ramp,
        "reversed": -ramp,
        "denormal": (uniform * 9).floor() * torch.finfo(dtype).smallest_normal / 8,
        "zeros": torch.where(uniform < 0.5, 0.0, -0.0).double(),
        "spikes": torch.where(uniform < 3 / max(n, 3), 2.0, 0.0).double(),
        "blocks": (torch.arange(n) // 64 % 7).double(),
    }[shape]
    return values.to(dtype)


SHAPES = [
    "normal",
    "log-normal",
    "equal",
    "few",
    "sorted",
    "reversed",
    "denormal",
    "zeros",
    "spikes",
    "blocks",
]


@settings(max_examples=120, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    n=st.one_of(st.integers(0, 200), st.integers(16_300, 16_500), st.integers(65_000, 90_000)),
    dtype=st.sampled_from(DTYPES),
    where=st.floats(0, 1),
    threads=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_equals_a_stable_sort(
    shape: str, n: int, dtype: torch.dtype, where: float, threads: int, seed: int
) -> None:
    values = make(shape, n, seed, dtype)
    for k in {0, min(1, n), max(n - 1, 0), n, int(where * n), n // 300}:
        (found,), *_, status = OPS.select([values], [k], None, threads)
        assert status.tolist() == [-1]
        assert torch.equal(found, largest(values, k))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), threads=st.integers(1, 8))
def test_any_bit_pattern_is_put_in_order_or_refused(
    data: st.DataObject, dtype: torch.dtype, threads: int
) -> None:
    size = dtype.itemsize
    raw = data.draw(st.binary(min_size=size, max_size=40 * size))
    values = torch.frombuffer(bytearray(raw[: len(raw) // size * size]), dtype=dtype)
    k = data.draw(st.integers(0, len(values)))
    (found,), *_, status = OPS.select([values], [k], None, threads)
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    assert status.tolist() == [bad[0] if bad else -1]
    assert len(found) == k
    if not bad:
        assert torch.equal(found, largest(values, k))


@pytest.mark.parametrize("shape", SHAPES)
def test_millions_with_one_to_eight_threads_give_the_same_bits(shape: str) -> None:
    values = make(shape, 2_300_000, 3, torch.float32)
    order = largest(values, len(values) // 2)
    for k in (1, 23, 17_000, 230_000, len(order)):
        for threads in (1, 2, 5, 8) if k < len(order) else (2,):
            (found,), *_ = OPS.select([values], [k], None, threads)
            assert torch.equal(found, order[:k]), (k, threads)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 40), st.just(70_000)), min_size=1, max_size=5),
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from(SHAPES),
    where=st.floats(0, 1),
    threads=st.integers(1, 8),
)
def test_across_a_list_equals_a_sort_of_the_whole(
    lengths: list[int], dtype: torch.dtype, shape: str, where: float, threads: int
) -> None:
    flats = [make(shape, n, i, dtype) for i, n in enumerate(lengths)]
    k = int(where * sum(lengths))
    owners, indices, status = OPS.select_across(flats, k, threads)
    expected = largest(torch.cat(flats), k)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    assert torch.equal(starts[owners] + indices, expected)
    assert all(0 <= int(i) < lengths[int(o)] for o, i in zip(owners[:99], indices[:99], strict=True))
    assert status.tolist() == [-1] * len(flats)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_non_finite_entry_is_found_whatever_k(bad: float, dtype: torch.dtype) -> None:
    for n in (1, 33, 400_000):
        values = make("normal", n, 0, dtype)
        first = n * 3 // 4
        values[first] = values[-1] = bad
        for k in {0, 1, n // 1000, n // 2, n}:
            for threads in (1, 3):
                assert OPS.select([values], [k], None, threads)[-1].tolist() == [first]
    clean = make("normal", 500, 0, dtype)
    assert OPS.select_across([clean, values, values], 5, 2)[2].tolist() == [-1, first, first]


def test_negative_nan_is_found_too() -> None:
    values = torch.zeros(100)
    values.view(torch.int32)[41] = -1
    assert torch.isnan(values[41]) and torch.signbit(values[41])
    assert OPS.select([values], [3], None, 1)[-1].tolist() == [41]


def test_it_is_what_auto_runs_on_the_cpu_and_keeps_the_contract_of_the_op() -> None:
    for op in ("topk", "topk_across", "topk_stored", "topk_summary"):
        assert resolve(op, "auto", torch.device("cpu"))[0] == "cpp"
    values = torch.randn(70, 31).t()[::2]
    fast, plain = topk(values, 50, impl="cpp"), topk(values, 50, impl="reference")
    assert all(torch.equal(a, b) for a, b in zip(fast, plain, strict=True))
    parts = [torch.randn(50)[::3], torch.randn(4, 5), torch.randn(0)]
    across, plain_across = topk_across(parts, 9, impl="cpp"), topk_across(parts, 9, impl="reference")
    assert all(torch.equal(a, b) for a, b in zip(across, plain_across, strict=True))


def test_flushing_denormals_does_not_change_the_order() -> None:
    tiny = make("denormal", 70_000, 1, torch.float32)
    expected = largest(tiny, 700)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        (found,), *_ = OPS.select([tiny], [700], None, 2)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(found, expected)


def test_the_schemas_hold_for_every_dtype_and_for_empty_vectors(tmp_path: Path) -> None:
    checks = ("test_schema", "test_autograd_registration")
    check = partial(torch.library.opcheck, test_utils=checks)
    x = torch.randn(100)
    x.numpy().tofile(tmp_path / "x")
    check(OPS.select.default, ([x, x.half()], [3, 0], None, 2))
    check(OPS.select_across.default, ([x, x[:0], x], 5, 2))
    check(OPS.select_file.default, (str(tmp_path / "x"), 4, 99, torch.float32, 5, None, 1))
    bounds = torch.tensor([0.5, -1.0], dtype=torch.float64)
    for dtype in DTYPES:
        check(OPS.select.default, ([x.to(dtype), x[:0].to(dtype)], [3, 0], bounds, 2))
    check(OPS.select_file.default, (str(tmp_path / "x"), 4, 99, torch.float32, 5, bounds, 1))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_large_enough_to_be_sampled(shape: str, tmp_path: Path) -> None:
    values = make(shape, 17_000_000, 4, torch.float32)
    values.numpy().tofile(tmp_path / "x")
    for k in (17, 17_000):
        (expected,), *_ = OPS.select([values], [k], None, 1)
        found, indices, *_ = OPS.select_file(str(tmp_path / "x"), 0, len(values), torch.float32, k, None, 2)
        assert torch.equal(indices, expected) and torch.equal(found, values[expected])


@pytest.mark.parametrize(
    "call",
    [
        lambda x: OPS.select([x], [101], None, 1),
        lambda x: OPS.select([x], [-1], None, 1),
        lambda x: OPS.select([x], [], None, 1),
        lambda x: OPS.select([x[::2]], [1], None, 1),
        lambda x: OPS.select([x.long()], [1], None, 1),
        lambda x: OPS.select_across([x, x.half()], 1, 1),
        lambda x: OPS.select_across([x, x], 201, 1),
        lambda x: OPS.select([x], [101], x.double(), 1),
        lambda x: OPS.select([x], [], x.double(), 1),
        lambda x: OPS.select([x[::2]], [0], x[:0].double(), 1),
        lambda x: OPS.select([x.long()], [0], x[:0].double(), 1),
        lambda x: OPS.select([x], [0], x, 1),
        lambda x: OPS.select([x], [0], x.double()[::2], 1),
    ],
)
def test_what_could_read_out_of_bounds_is_refused_below_python_too(call) -> None:
    with pytest.raises(RuntimeError):
        call(torch.zeros(100))


def test_another_python_thread_runs_meanwhile() -> None:
    values = make("log-normal", 4_000_000, 0, torch.float32)
    ticks, done = [], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(None)
            time.sleep(0.0005)  # gives the lock back

    other = threading.Thread(target=tick)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # the interpreter lock changes hands only where it is released
    try:
        other.start()
        before = len(ticks)
        OPS.select([values], [2_000_000], None, 1)
        during = len(ticks) - before
    finally:
        sys.setswitchinterval(interval)
        done.set()
        other.join()
    assert during > 0


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_bits(isa: str, tmp_path: Path) -> None:
    code = (
        "import torch, tomfisher._C, sys\n"
        "ops = torch.ops.tomfisher_cpp; print(ops.cpu_isa())\n"
        "for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):\n"
        "    for n in (0, 1, 15, 33, 127, 129, 70_003):\n"
        "        x = torch.randn(n, generator=torch.Generator().manual_seed(n)).to(dtype)\n"
        "        for k in (0, n // 300, n // 2, n):\n"
        "            print(hash(tuple(ops.select([x], [k], None, 2)[0][0].tolist())))\n"
        "        if n:\n"
        "            x[n // 2] = -torch.inf\n"
        "            print(ops.select([x], [0], None, 1)[-1].item())\n"
    )

    def run(limit: str) -> list[str]:
        environment = {**os.environ, "TOMFISHER_CPU_ISA": limit, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
        )
        return done.stdout.split()

    best, limited = run(""), run(isa)
    if limited[0] != isa:
        pytest.skip(f"this processor has no {isa}")
    assert limited[1:] == best[1:] and len(best) > 100


def test_an_unknown_instruction_set_is_refused(tmp_path: Path) -> None:
    code = "import torch, tomfisher._C; torch.ops.tomfisher_cpp.cpu_isa()"
    environment = {**os.environ, "TOMFISHER_CPU_ISA": "sse9"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 1 and "must be scalar, avx2, avx512" in done.stderr
