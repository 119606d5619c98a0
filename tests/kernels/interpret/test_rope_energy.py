from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import truth
from tomfisher.ops import rope_energy

pytest.importorskip("tomfisher.kernels.rope_energy")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = torch.finfo(torch.float32).eps
SLACK = 8 * EPS  # relative: all terms are >= 0, a chunk is added up as a tree and the chunks in float64


def check(x: Tensor, layout: str, width: int, lengths: list[int]) -> None:
    found = rope_energy(x, layout, width, lengths, impl="triton")
    eager = rope_energy(x, layout, width, lengths, impl="reference")
    assert found.tokens == sum(lengths)
    for got, low, want in zip(
        found[:2], eager[:2], truth.rope_energy(x, layout, width, lengths), strict=True
    ):
        assert got.dtype == torch.float32
        assert ((got - want).abs() <= (low - want).abs() + SLACK * want).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize(
    ("heads", "head", "width"),
    [(1, 2, 2), (3, 64, 64), (2, 80, 20), (1, 128, 96), (2, 66, 66), (1, 256, 256)],
)
def test_layouts_and_sizes(dtype: torch.dtype, layout: str, heads: int, head: int, width: int) -> None:
    check(torch.randn(2, 70, heads, head).to(dtype), layout, width, [70, 33])


@pytest.mark.parametrize("lengths", [[0, 0, 0], [1, 0, 2], [255, 256, 257], [600, 513, 1]])
def test_ragged_lengths_with_poisoned_padding(lengths: list[int]) -> None:
    x = torch.randn(3, 600, 2, 16)
    for sequence, n in zip(x, lengths, strict=True):
        sequence[n:] = math.nan
    check(x, "half", 16, lengths)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_any_strides_and_what_is_not_rotated_is_ignored(layout: str) -> None:
    x = torch.randn(2, 3, 40, 48)[..., ::2].transpose(1, 2)
    assert not x.is_contiguous()
    x[..., 16:] = math.nan
    check(x, layout, 16, [40, 40])


def test_a_planted_pair_is_found() -> None:
    x = torch.zeros(1, 10, 2, 8)
    x[0, :, 1, 2], x[0, :, 1, 6] = 3.0, 4.0
    half = rope_energy(x, impl="triton")
    assert half.norm[1].tolist() == [0, 0, 50, 0] and half.energy[1, 2] == 250 and not half.energy[0].any()
    interleaved = rope_energy(x, "interleaved", impl="triton")
    assert interleaved.norm[1].tolist() == [0, 30, 0, 40]


def test_empty_and_non_finite() -> None:
    assert not rope_energy(torch.zeros(0, 5, 2, 4), impl="triton").energy.any()
    assert rope_energy(torch.zeros(2, 0, 2, 4), impl="triton").norm.shape == (2, 2)
    x = torch.ones(1, 4, 1, 4)
    x[0, 2, 0, 1] = math.nan
    assert rope_energy(x, impl="triton").energy.isnan().tolist() == [[False, True]]
