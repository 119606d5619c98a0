from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import truth
from tomfisher.ops import SinkMass, sink_mass

pytest.importorskip("tomfisher.kernels.sink_mass")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
EPS = torch.finfo(torch.float32).eps


def check(q: Tensor, k: Tensor, scale: float = 0.2, causal: bool = True, first: int = 1,
          slopes: Tensor | None = None, window: int | None = None) -> None:  # fmt: skip
    options = {"causal": causal, "first": first, "slopes": slopes, "window": window}
    found, eager = (sink_mass(q, k, scale, impl=impl, **options) for impl in ("triton", "reference"))
    want, largest = truth.sink_mass(q, k, scale, **options)
    for name, got, low, exact in zip(SinkMass._fields, found, eager, want, strict=True):
        slack = 8 * EPS * (1 + largest) * (1 + exact.max())
        error, allowed = (got - exact).abs().max(), (low - exact).abs().max() + slack
        assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"


def operands(B: int, H: int, H_kv: int, T: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    q, k = (torch.randn(B, T, heads, D, device="cuda").to(dtype).transpose(1, 2) for heads in (H, H_kv))
    return q, k


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("T", "D"), [(1, 4), (33, 40), (63, 64), (64, 64), (65, 128), (500, 80), (1000, 256)]
)
def test_sizes(dtype: torch.dtype, causal: bool, T: int, D: int) -> None:
    check(*operands(2, 4, 2, T, D, dtype), scale=D**-0.5, causal=causal)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 64, 200])
def test_slopes_window_and_several_first_keys(dtype: torch.dtype, window: int | None) -> None:
    slopes = torch.tensor([0.5, 0.25, 2.0, 0.0], device="cuda")
    check(*operands(2, 4, 1, 300, 64, dtype), first=3, slopes=slopes, window=window)


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_is_not_read_and_gives_zero(dtype: torch.dtype) -> None:
    q, k = operands(3, 4, 2, 130, 64, dtype)
    lengths = [130, 0, 65]
    alone = sink_mass(q[2:, :, :65], k[2:, :, :65], 0.2, impl="triton")
    for b, n in enumerate(lengths):
        q[b, :, n:] = k[b, :, n:] = math.nan
    for together, part in zip(sink_mass(q, k, 0.2, lengths=lengths, impl="triton"), alone, strict=True):
        assert torch.equal(together[2:, :, :65], part)
        assert not together[2, :, 65:].any() and not together[1].any() and together.isfinite().all()


def test_more_heads_than_the_second_axis_of_a_grid_has_programs() -> None:
    q, k = operands(2048, 33, 1, 3, 16, torch.float16)
    last = sink_mass(q[-1:].cpu(), k[-1:].cpu(), 0.25, impl="reference")
    for got, want in zip(sink_mass(q, k, 0.25, impl="triton"), last, strict=True):
        assert torch.allclose(got[-1:].cpu(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("D", [24, 64])
def test_entries_apart(D: int) -> None:
    q, k = operands(2, 4, 2, 130, 2 * D, torch.bfloat16)
    check(q[..., ::2], k[..., 1::2], scale=D**-0.5)


def test_the_same_bits_every_time() -> None:
    q, k = operands(2, 8, 2, 1000, 128, torch.bfloat16)
    first = sink_mass(q, k, 0.1, impl="triton")
    for _ in range(3):
        again = sink_mass(q, k, 0.1, impl="triton")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
