from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import truth
from tomfisher.ops import rope_energy

pytest.importorskip("tomfisher.kernels.rope_energy")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SLACK = 8 * torch.finfo(torch.float32).eps  # relative: no term is negative


def check(x: Tensor, layout: str, width: int, lengths: list[int]) -> None:
    found = rope_energy(x, layout, width, lengths, impl="triton")
    eager = rope_energy(x, layout, width, lengths, impl="reference")
    for got, low, want in zip(
        found[:2], eager[:2], truth.rope_energy(x, layout, width, lengths), strict=True
    ):
        assert ((got - want).abs() <= (low - want).abs() + SLACK * want).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize(("head", "width"), [(2, 2), (64, 64), (80, 20), (128, 96), (66, 66), (256, 256)])
def test_layouts_and_sizes_with_poisoned_padding(
    dtype: torch.dtype, layout: str, head: int, width: int
) -> None:
    x = torch.randn(3, 3, 700, head, device="cuda").to(dtype).transpose(1, 2)
    lengths = [700, 0, 257]
    for sequence, n in zip(x, lengths, strict=True):
        sequence[n:] = math.nan
    check(x, layout, width, lengths)


def test_the_same_bits_every_time() -> None:
    x = torch.randn(8, 2000, 8, 128, device="cuda", dtype=torch.bfloat16)
    first = rope_energy(x, impl="triton")
    for _ in range(3):
        again = rope_energy(x, impl="triton")
        assert torch.equal(first.energy, again.energy) and torch.equal(first.norm, again.norm)


@pytest.mark.slow
def test_more_than_2_to_the_31_entries() -> None:
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free GPU memory")
    x = torch.zeros(2, 2**23 + 5, 1, 144, device="cuda", dtype=torch.bfloat16)
    x[1, -1, 0, 1], x[1, -1, 0, 73] = 3.0, 4.0
    found = rope_energy(x, impl="triton")
    assert found.norm[0].nonzero().tolist() == [[1]] and found.norm[0, 1] == 5 and found.energy[0, 1] == 25
