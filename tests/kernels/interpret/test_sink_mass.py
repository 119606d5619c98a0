from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import truth
from tomfisher.ops import SinkMass, sink_mass

launcher = pytest.importorskip("tomfisher.kernels.sink_mass")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = torch.finfo(torch.float32).eps


def check(q: Tensor, k: Tensor, scale: float = 0.2, causal: bool = True, lengths: list[int] | None = None,
          first: int = 1, slopes: Tensor | None = None, window: int | None = None) -> None:  # fmt: skip
    lengths = lengths or [q.shape[2]] * q.shape[0]
    options = (scale, causal, lengths, first, slopes, window)
    found, eager = (sink_mass(q, k, *options, impl=impl) for impl in ("triton", "reference"))
    want, largest = truth.sink_mass(q, k, *options)
    for name, got, low, exact in zip(SinkMass._fields, found, eager, want, strict=True):
        assert got.dtype == torch.float32
        # a score is off by a few units in its last place, and a weight by as much relatively
        slack = 8 * EPS * max(1, largest) * (1 + exact.max())
        error, allowed = (got - exact).abs().max(), (low - exact).abs().max() + slack
        assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"


def operands(B: int, H: int, H_kv: int, T: int, D: int, dtype: torch.dtype = torch.float32):
    return torch.randn(B, H, T, D).to(dtype), torch.randn(B, H_kv, T, D).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("T", "D"), [(1, 4), (31, 16), (32, 32), (33, 40), (64, 64), (65, 63), (130, 80)]
)  # fmt: skip
def test_sizes(dtype: torch.dtype, causal: bool, T: int, D: int) -> None:
    check(*operands(1, 2, 2, T, D, dtype), causal=causal)


@pytest.mark.parametrize(("H", "H_kv"), [(4, 1), (6, 2), (6, 3)])
def test_grouped_queries(H: int, H_kv: int) -> None:
    check(*operands(2, H, H_kv, 40, 16))


@pytest.mark.parametrize("causal", [True, False])
def test_ragged_lengths_with_poisoned_padding(causal: bool) -> None:
    q, k = operands(4, 2, 1, 97, 24)
    lengths = [97, 0, 64, 1]
    for b, n in enumerate(lengths):
        q[b, :, n:] = k[b, :, n:] = math.nan
    check(q, k, causal=causal, lengths=lengths)
    for statistic in sink_mass(q, k, 0.2, causal, lengths, impl="triton"):
        assert all(not statistic[b, :, n:].any() for b, n in enumerate(lengths))


@pytest.mark.parametrize("window", [1, 2, 31, 32, 50, 500, 2**31 - 1, 2**40])
def test_sliding_window(window: int) -> None:
    check(*operands(1, 2, 1, 100, 16), window=window)


def test_alibi_slopes() -> None:
    check(*operands(2, 4, 4, 70, 16), slopes=torch.tensor([0.5, 0.25, 2.0, 0.0]))


@pytest.mark.parametrize("first", [1, 4, 40, 200])
def test_several_first_keys(first: int) -> None:
    check(*operands(1, 1, 1, 70, 16), first=first)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 5.0])
def test_flat_and_peaked_rows(scale: float) -> None:
    check(*operands(1, 2, 2, 70, 32), scale=scale)


def test_uniform_attention_has_the_known_numbers() -> None:
    q, k = torch.zeros(1, 1, 50, 8), torch.randn(1, 1, 50, 8)
    found = sink_mass(q, k, 1.0, impl="triton")
    seen = torch.arange(1, 51).double()
    assert torch.allclose(found.first_mass[0, 0].double(), 1 / seen, rtol=4 * EPS, atol=0)
    assert torch.allclose(found.entropy[0, 0].double(), seen.log(), rtol=4 * EPS, atol=4 * EPS)
    means = [sum(1 / t for t in range(j + 1, 51)) / (50 - j) for j in range(50)]
    assert found.column_mean[0, 0].tolist() == pytest.approx(means, rel=16 * EPS)


def test_a_planted_sink_is_found_in_its_head_alone() -> None:
    q, k = operands(1, 3, 3, 80, 16)
    q[:, 1] = 1.0
    k[:, 1, 0] = 3.0
    k[:, 1, 1:] = 0.0
    sinks = sink_mass(q, k, 0.25, impl="triton").column_mean[0] > 0.3
    assert sinks[1].nonzero().flatten().tolist() == [0]


def test_scores_far_from_zero_keep_their_differences() -> None:
    q, k = operands(1, 1, 1, 60, 8)
    q[..., 0], k[..., 0] = 30.0, 30.0
    check(q, k, scale=1.0)


def test_any_strides() -> None:
    q = torch.randn(2, 50, 4, 32)[..., ::2].transpose(1, 2)
    k = torch.randn(2, 2, 16, 50).transpose(2, 3)
    check(q, k)


class Recorded:
    """Stands in for a kernel: notes grid and arguments, runs nothing."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], tuple]] = []

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *arguments, **_: self.calls.append((grid, arguments))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorder = Recorded()
    for kernel in ("rows_kernel", "columns_kernel"):
        monkeypatch.setattr(launcher, kernel, recorder)
    return recorder


@pytest.mark.parametrize(("B", "H", "T", "blocks"), [(2048, 32, 1, 1), (2048, 32, 70, 3), (1, 1, 64, 2)])
def test_the_grid_has_a_program_per_block_and_keeps_to_the_limits_of_its_axes(
    B: int, H: int, T: int, blocks: int, recorded: Recorded
) -> None:
    q = torch.zeros(1, 1, T, 16).expand(B, H, T, 16)
    sink_mass(q, q, 1.0, impl="triton")
    for grid, _ in recorded.calls:
        assert math.prod(grid) == B * H * blocks
        assert grid[0] < 2**31 and max((*grid[1:], 1)) <= 65_535
    assert len(recorded.calls) == 2


MISFITS = {
    "entries apart": lambda: torch.randn(2, 4, 50, 64)[..., ::2],
    "transposed": lambda: torch.randn(2, 4, 32, 50).transpose(2, 3),
    "odd rows": lambda: torch.randn(2, 4, 50, 33)[..., :32],
    "odd start": lambda: torch.randn(2, 4, 50, 48)[..., 1:33],
    "odd head": lambda: torch.randn(2, 4, 50, 25),
    "one repeated": lambda: torch.randn(2, 4, 50, 1).expand(2, 4, 50, 32),
}


@pytest.mark.parametrize("make", MISFITS.values(), ids=MISFITS)
def test_kernels_are_given_what_they_are_compiled_for(make, recorded: Recorded) -> None:
    x = make()
    sink_mass(x, x, 0.2, impl="triton")
    for _, arguments in recorded.calls:
        for operand in arguments[:2]:
            *strides, beside = operand.stride()
            assert beside == 1 and operand.data_ptr() % 16 == 0
            assert not any(n % 16 for n in (*strides, operand.shape[3]))


@pytest.mark.parametrize("make", MISFITS.values(), ids=MISFITS)
def test_misfits_are_right(make) -> None:
    check(make(), make())


def test_what_fits_is_not_copied(recorded: Recorded) -> None:
    x = torch.randn(2, 50, 4, 96)[..., 16:80].transpose(1, 2)
    sink_mass(x, x, 0.2, impl="triton")
    for _, arguments in recorded.calls:
        assert arguments[0].data_ptr() == arguments[1].data_ptr() == x.data_ptr()


def test_empty() -> None:
    for shape in ((0, 2, 5, 4), (2, 2, 0, 4)):
        q = torch.zeros(shape)
        assert all(part.shape == shape[:3] for part in sink_mass(q, q, 1.0, impl="triton"))
