"""What the tests change in Triton's interpreter, and that it still has to be changed."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl

import interpreter


@triton.jit
def product_kernel(a, b, out, N: tl.constexpr):
    """`out = a @ b` of one tile."""
    i = tl.arange(0, N)
    tile = i[:, None] * N + i[None, :]
    tl.store(out + tile, tl.dot(tl.load(a + tile), tl.load(b + tile)))


def error(dtype: torch.dtype) -> float:
    a, b = (torch.randint(-8, 9, (16, 16)).to(dtype) for _ in range(2))
    out = torch.empty(16, 16)
    product_kernel[(1,)](a, b, out, N=16)
    return float((out - a.float() @ b.float()).abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products_of_small_integers_are_exact(dtype: torch.dtype) -> None:
    assert error(dtype) == 0


def test_without_the_patch_bfloat16_is_multiplied_as_bit_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this fails, Triton has mended its interpreter: drop `tests/support/interpreter.py`."""
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", interpreter.plain_dot)
    assert error(torch.float16) == 0
    assert error(torch.bfloat16) > 1e4
