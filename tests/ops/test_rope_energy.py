from __future__ import annotations

import math

import pytest
import torch

import truth
from tomfisher.ops import rope_energy

EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize(("head", "width"), [(2, 2), (64, 64), (80, 20), (66, 66)])
def test_equals_float64(dtype: torch.dtype, layout: str, head: int, width: int) -> None:
    x = torch.randn(3, 50, 2, head).to(dtype)
    found = rope_energy(x, layout, width)
    assert found.tokens == 150
    for got, want in zip(found[:2], truth.rope_energy(x, layout, width), strict=True):
        assert got.dtype == torch.float32
        # a square, a root, and sums of 50 and 3 terms, none of them negative
        assert ((got - want).abs() <= 60 * EPS * want).all()


def test_the_whole_head_is_the_default() -> None:
    x = torch.randn(1, 5, 2, 8)
    assert torch.equal(rope_energy(x).energy, rope_energy(x, rotary_dim=8).energy)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_padding_is_not_counted(as_tensor: bool) -> None:
    x = torch.randn(3, 10, 2, 4)
    lengths = [10, 0, 4]
    rows = torch.cat([x[0], x[2, :4]])[None]
    for sequence, n in zip(x, lengths, strict=True):
        sequence[n:] = math.nan
    found = rope_energy(x, lengths=torch.tensor(lengths) if as_tensor else lengths)
    assert found.tokens == 14
    torch.testing.assert_close(found.energy, rope_energy(rows).energy, rtol=20 * EPS, atol=0)


def test_a_rotation_changes_nothing() -> None:
    x, angle = torch.randn(2, 30, 3, 8, dtype=torch.float64), torch.randn(30, 1, 4, dtype=torch.float64)
    i, j = x.chunk(2, -1)
    turned = torch.cat([i * angle.cos() - j * angle.sin(), j * angle.cos() + i * angle.sin()], -1)
    before, after = rope_energy(x.float()), rope_energy(turned.float())
    torch.testing.assert_close(before.norm, after.norm, rtol=40 * EPS, atol=0)


def test_no_tokens() -> None:
    found = rope_energy(torch.zeros(0, 5, 2, 4))
    assert found.tokens == 0 and found.norm.shape == (2, 2) and not found.norm.any()


@pytest.mark.parametrize(
    ("x", "options", "kind", "message"),
    [
        (torch.zeros(1, 1, 1, 4, dtype=torch.float64), {}, TypeError, r"got torch\.float64"),
        (torch.zeros(1, 1, 4), {}, ValueError, r"\[B, T, H, D\]"),
        (torch.zeros(1, 1, 1, 4), {"layout": "thirds"}, ValueError, "'half' or 'interleaved'"),
        (torch.zeros(1, 1, 1, 4), {"rotary_dim": 3}, ValueError, "even and between 2 and 4"),
        (torch.zeros(1, 1, 1, 4), {"rotary_dim": 6}, ValueError, "even and between 2 and 4"),
        (torch.zeros(1, 1, 1, 4), {"rotary_dim": 0}, ValueError, "even and between 2 and 4"),
        (torch.zeros(1, 1, 1, 5), {}, ValueError, "even"),
        (torch.zeros(2, 3, 1, 4), {"lengths": [3]}, ValueError, "2 numbers between 0 and 3"),
        (torch.zeros(2, 3, 1, 4), {"lengths": [3, 4]}, ValueError, "2 numbers between 0 and 3"),
    ],
)
def test_bad_input(x, options, kind, message) -> None:
    with pytest.raises(kind, match=message):
        rope_energy(x, **options)
