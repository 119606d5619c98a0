from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import truth
from tomfisher.ops import SinkMass, sink_mass

EPS = torch.finfo(torch.float32).eps


def close(found: SinkMass, want: list[Tensor], largest: float) -> None:
    for got, exact in zip(found, want, strict=True):
        assert got.dtype == torch.float32
        assert (got - exact).abs().max() <= 8 * EPS * (1 + largest) * (1 + exact.max())


def operands(B: int, H: int, H_kv: int, T: int, D: int, dtype: torch.dtype = torch.float32):
    return torch.randn(B, H, T, D).to(dtype), torch.randn(B, H_kv, T, D).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("H", "H_kv"), [(2, 2), (4, 1), (6, 2)])
@pytest.mark.parametrize("T", [1, 64, 300])
def test_equals_float64(dtype: torch.dtype, H: int, H_kv: int, T: int) -> None:
    q, k = operands(2, H, H_kv, T, 16, dtype)
    close(sink_mass(q, k, 0.25), *truth.sink_mass(q, k, 0.25))


@pytest.mark.parametrize(
    "options",
    [
        {"causal": False},
        {"window": 1},
        {"window": 7},
        {"window": 1000},
        {"first": 5},
        {"slopes": torch.tensor([1.0, 0.5, 0.25, 0.0])},
        {"slopes": torch.tensor([1.0, 0.5, 0.25, 0.0]), "window": 30, "first": 2},
    ],
    ids=lambda options: "-".join(options),
)
def test_options(options: dict) -> None:
    q, k = operands(2, 4, 2, 270, 8)
    close(sink_mass(q, k, 0.5, **options), *truth.sink_mass(q, k, 0.5, **options))


def test_padding_does_not_count_and_gives_zero() -> None:
    q, k = operands(3, 2, 1, 40, 8)
    lengths = [40, 0, 13]
    alone = [sink_mass(q[b : b + 1, :, :n], k[b : b + 1, :, :n], 0.3) for b, n in enumerate(lengths)]
    for b, n in enumerate(lengths):
        q[b, :, n:] = k[b, :, n:] = math.nan
    found = sink_mass(q, k, 0.3, lengths=torch.tensor(lengths))
    for together, parts in zip(found, zip(*alone, strict=True), strict=True):
        for b, n in enumerate(lengths):
            torch.testing.assert_close(together[b, :, :n], parts[b][0])
            assert not together[b, :, n:].any()


def test_sink_metric_of_a_head_that_looks_at_the_first_token() -> None:
    q, k = torch.ones(1, 2, 64, 4), torch.zeros(1, 2, 64, 4)
    k[:, 1, 0] = 100.0
    found = sink_mass(q, k, 0.5)
    assert (found.column_mean[0] > 0.3).nonzero().tolist() == [[1, 0]]
    assert found.first_mass[0, 1].tolist() == [1.0] * 64
    assert found.entropy[0, 1].abs().max() == 0
    assert found.entropy[0, 0, 63].item() == pytest.approx(math.log(64))


@pytest.mark.parametrize(
    ("q", "k", "options", "kind", "message"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 5), {}, ValueError, r"k \[B, H_kv, T, D\]"),
        ((1, 2, 3, 4), (1, 2, 4, 4), {}, ValueError, r"k \[B, H_kv, T, D\]"),
        ((2, 3, 4), (2, 3, 4), {}, ValueError, r"q must be \[B, H, T, D\]"),
        ((1, 3, 3, 4), (1, 2, 3, 4), {}, ValueError, "3 heads must be a multiple of k's, got 2"),
        ((1, 2, 3, 4), (1, 0, 3, 4), {}, ValueError, "multiple of k's, got 0"),
        ((1, 2, 3, 4), (1, 2, 3, 4), {"first": 0}, ValueError, "first must be at least 1"),
        ((1, 2, 3, 4), (1, 2, 3, 4), {"window": 0}, ValueError, "window must be at least 1"),
        ((1, 2, 3, 4), (1, 2, 3, 4), {"causal": False, "window": 2}, ValueError, "causal=True"),
        ((1, 2, 3, 4), (1, 2, 3, 4), {"causal": False, "slopes": torch.ones(2)}, ValueError, "causal=True"),
        ((1, 2, 3, 4), (1, 2, 3, 4), {"slopes": torch.ones(3)}, ValueError, r"slopes must be float32 \[2\]"),
        ((1, 2, 3, 4), (1, 2, 3, 4), {"lengths": [4]}, ValueError, "1 numbers between 0 and 3"),
    ],
)
def test_bad_input(q, k, options, kind, message) -> None:
    with pytest.raises(kind, match=message):
        sink_mass(torch.zeros(q), torch.zeros(k), 1.0, **options)


def test_wrong_dtypes() -> None:
    q = torch.zeros(1, 1, 2, 4)
    with pytest.raises(TypeError, match="share float16"):
        sink_mass(q, q.half(), 1.0)
    with pytest.raises(TypeError, match="share float16"):
        sink_mass(q.double(), q.double(), 1.0)
