from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import truth
from tomfisher.ops import resolve, squared_gradient_

pytest.importorskip("tomfisher._C")
LEVELS = ["scalar", "avx2", "avx512", "avx512bf16"]
HERE = [*LEVELS, "amx"].index(torch.ops.tomfisher_cpp.cpu_isa())
levels = pytest.mark.parametrize(
    "isa",
    [
        pytest.param(level, marks=pytest.mark.skipif(i > HERE, reason=f"this processor lacks {level}"))
        for i, level in enumerate(LEVELS)
    ],
)
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
EPS = torch.finfo(torch.float32).eps
Bounds = list[tuple[int, int]]


def run(
    Y: Tensor, X: Tensor, bounds: Bounds, isa: str = "", threads: int = 2, F: Tensor | None = None
) -> Tensor:
    F = torch.zeros(1, Y.shape[1], X.shape[1]) if F is None else F
    starts, stops = [a for a, _ in bounds], [b for _, b in bounds]
    torch.ops.tomfisher_cpp.squared_gradient_(F, Y, X, starts, stops, [0] * len(bounds), threads, isa)
    return F[0]


def packed(lengths: list[int]) -> Bounds:
    return list(itertools.pairwise(itertools.accumulate(lengths, initial=0)))


def operands(tokens: int, d_out: int, d_in: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    Y, X = (torch.randn(tokens, d, generator=generator).to(dtype) for d in (d_out, d_in))
    return Y, X


@levels
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), max_size=4),
    d_out=st.integers(1, 130),
    d_in=st.integers(1, 130),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_shape_on_any_instruction_set(isa, lengths, d_out, d_in, dtype, threads, seed) -> None:
    Y, X = operands(sum(lengths), d_out, d_in, dtype, seed)
    truth.assert_squared_gradient(run(Y, X, packed(lengths), isa, threads), Y, X, packed(lengths))


@levels
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_samples_are_cut_and_put_together(isa, dtype) -> None:
    bounds = packed([3, 1001, 257, 0, 513, 40, 2048])
    Y, X = operands(bounds[-1][1], 37, 70, dtype)
    truth.assert_squared_gradient(run(Y, X, bounds, isa), Y, X, bounds)


@levels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(700, 90), (40, 2100), (350, 1100)])
def test_F_of_several_blocks(isa, dtype, shape) -> None:
    bounds = packed([5, 2, 9])
    Y, X = operands(16, *shape, dtype)
    truth.assert_squared_gradient(run(Y, X, bounds, isa), Y, X, bounds)


@levels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 64, 48, 32), (3, 37, 33, 29), (2, 300, 65, 77), (1, 700, 20, 30)])
def test_error_is_no_larger_than_eager_pytorch_in_the_same_dtype(isa, dtype, shape) -> None:
    B, T, d_out, d_in = shape
    Y, X = operands(B * T, d_out, d_in, dtype)
    bounds = packed([T] * B)
    exact = truth.squared_gradient(Y, X, bounds)
    eager = sum((Y[a:b].T @ X[a:b]).float().square() for a, b in bounds)
    mine = (run(Y, X, bounds, isa).double() - exact).abs().max()
    # the slack covers a different order of summation: a few roundings of the largest entry
    assert mine <= (eager.double() - exact).abs().max() + 8 * math.sqrt(T) * EPS * exact.max()


@levels
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_threads(isa, dtype) -> None:
    bounds = packed([130, 0, 77, 600, 1])
    Y, X = operands(808, 129, 131, dtype)
    results = [run(Y, X, bounds, isa, threads) for threads in (1, 2, 3, 4, 64)]
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.skipif(LEVELS.index("avx512") > HERE, reason="this processor lacks avx512")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_both_vector_widths_give_the_same_bits(dtype) -> None:
    bounds = packed([130, 77, 600])
    Y, X = operands(807, 61, 99, dtype)
    assert torch.equal(run(Y, X, bounds, "avx2"), run(Y, X, bounds, "avx512"))


@levels
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_outside_the_segments_and_the_operands_is_read_or_written(isa, dtype) -> None:
    wide_y, wide_x = operands(40, 60, 90, dtype)
    Y, X = wide_y[:, 7:40], wide_x[:, 11:80]
    bounds = [(2, 9), (12, 12), (13, 38)]
    inside = torch.zeros(40, dtype=torch.bool)
    for start, stop in bounds:
        inside[start:stop] = True
    for wide, low, high in ((wide_y, 7, 40), (wide_x, 11, 80)):
        wide[~inside] = math.nan
        wide[:, :low] = wide[:, high:] = math.nan
    F = torch.full((3, 33, 69), math.nan)
    F[1] = 0.0
    got = run(Y, X, bounds, isa, F=F[1:2])
    truth.assert_squared_gradient(got, Y, X, bounds)
    assert F[0].isnan().all() and F[2].isnan().all()


@levels
@settings(max_examples=25, deadline=None)
@given(
    segments=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=9),
    threads=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
)
def test_targets_say_which_slice_a_segment_adds_to(isa, segments, threads, dtype) -> None:
    lengths, targets = [n for n, _ in segments], [e for _, e in segments]
    bounds = packed(lengths)
    Y, X = operands(sum(lengths), 19, 35, dtype)
    F = torch.zeros(5, 19, 35)
    starts, stops = [a for a, _ in bounds], [b for _, b in bounds]
    torch.ops.tomfisher_cpp.squared_gradient_(F, Y, X, starts, stops, targets, threads, isa)
    for e in range(5):
        truth.assert_squared_gradient(
            F[e], Y, X, [b for b, target in zip(bounds, targets, strict=True) if target == e]
        )


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_the_public_operation_runs_it_with_any_strides(dtype) -> None:
    assert resolve("squared_gradient_", "auto", torch.device("cpu"))[0] == "cpp"
    wide = torch.randn(3, 14, 7).to(dtype)
    Y, X = wide.transpose(1, 2)[:, :, ::2], torch.randn(3, 9, 10).to(dtype)[:, 2:, 1:9:2]
    F, reference = torch.rand(7, 4).repeat(2, 1, 1)
    squared_gradient_(F, Y, X, lengths=[7, 0, 6], impl="cpp")
    squared_gradient_(reference, Y, X, lengths=[7, 0, 6], impl="reference")
    torch.testing.assert_close(F, reference)


def test_it_adds_to_what_F_holds_and_needs_no_rows_to_do_nothing() -> None:
    F = torch.full((1, 4, 3), 7.0)
    run(torch.empty(0, 4), torch.empty(0, 3), [(0, 0)], F=F)
    run(torch.ones(2, 4), torch.ones(2, 3), [], F=F)
    assert (F == 7.0).all()
    run(torch.ones(2, 4), torch.ones(2, 3), [(0, 2)], F=F)
    assert (F == 11.0).all()
    run(torch.ones(2, 0), torch.ones(2, 3), [(0, 2)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": [0, -1]}, "Segment 1 reaches outside"),
        ({"stops": [5, 11]}, "Segment 1 reaches outside"),
        ({"starts": [6, 5]}, "Segment 0 reaches outside"),
        ({"targets": [0, 1]}, "Target 1 is no slice"),
        ({"targets": [-1, 0]}, "Target 0 is no slice"),
        ({"targets": [0]}, "one target per segment"),
        ({"X": torch.ones(10, 4)}, "as wide as F"),
        ({"X": torch.ones(9, 3)}, "number of rows"),
        ({"X": torch.ones(10, 3).half()}, "their dtype"),
        ({"X": torch.ones(3, 10).t()}, "contiguous rows"),
        ({"F": torch.full((1, 4, 3), 7.0).double()}, "F must be float32"),
        ({"F": torch.full((1, 3, 4), 7.0).mT}, "contiguous"),
        ({"isa": "sse"}, "TOMFISHER_CPU_ISA must be"),
    ],
)
def test_what_could_reach_out_of_bounds_is_refused_once_more(change: dict, message: str) -> None:
    arguments = {
        "F": torch.full((1, 4, 3), 7.0),
        "Y": torch.ones(10, 4),
        "X": torch.ones(10, 3),
        "starts": [0, 5],
        "stops": [5, 10],
        "targets": [0, 0],
        "threads": 1,
        "isa": "",
        **change,
    }
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.tomfisher_cpp.squared_gradient_(*arguments.values())
    assert (arguments["F"] == 7.0).all()


def test_opcheck() -> None:
    Y, X = operands(9, 5, 4, torch.float32)
    for F, targets in ((torch.zeros(5, 4), None), (torch.zeros(2, 5, 4), [1, 0])):
        torch.library.opcheck(
            torch.ops.tomfisher.squared_gradient_.default, (F, Y, X, [0, 4], [4, 9], targets, "cpp")
        )
