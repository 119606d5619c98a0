from __future__ import annotations

import pytest
import torch

from tomfisher.ops import square_accumulate_

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_adds_the_square_in_float32(dtype: torch.dtype) -> None:
    shapes = [(7, 5), (3,), (2, 3, 4), ()]
    F = [torch.rand(shape) for shape in shapes]
    gradients = [torch.randn(shape).to(dtype) for shape in shapes]
    expected = [f.double() + g.double() ** 2 for f, g in zip(F, gradients, strict=True)]
    square_accumulate_(F, gradients)
    for got, want in zip(F, expected, strict=True):
        assert got.dtype == torch.float32
        # g is rounded once (float64 only), the square and the sum once each
        assert ((got.double() - want).abs() <= 4 * torch.finfo(torch.float32).eps * want).all()


def test_squares_that_underflow_in_float16_survive() -> None:
    F = [torch.zeros(3)]
    square_accumulate_(F, [torch.full((3,), 1e-4, dtype=torch.float16)])
    assert (F[0] > 0.9e-8).all()


def test_many_small_squares_are_not_lost_as_in_bfloat16() -> None:
    F = [torch.ones(1)]
    for _ in range(1000):
        square_accumulate_(F, [torch.full((1,), 0.03125, dtype=torch.bfloat16)])
    assert F[0].item() == pytest.approx(1 + 1000 * 0.03125**2, rel=1e-5)


def test_non_contiguous_and_transposed_operands() -> None:
    base = torch.zeros(4, 6)
    gradient = torch.randn(3, 4).t()
    square_accumulate_([base[:, ::2]], [gradient])
    assert torch.equal(base[:, ::2], gradient**2)
    assert not base[:, 1::2].any()


def test_empty_list_and_empty_tensors() -> None:
    square_accumulate_([], [])
    square_accumulate_([torch.zeros(0, 3)], [torch.zeros(0, 3)])


@pytest.mark.parametrize(
    ("F", "gradient", "kind", "message"),
    [
        (torch.zeros(2, dtype=torch.float64), torch.ones(2), TypeError, "Pair 1: F must be float32"),
        (torch.zeros(2), torch.ones(2, dtype=torch.int64), TypeError, "Pair 1"),
        (torch.zeros(2), torch.ones(3), ValueError, "Pair 1.*share shape"),
        (torch.zeros(2), torch.ones(1), ValueError, "Pair 1.*share shape"),
        (torch.zeros(2), torch.ones(2, device="meta"), ValueError, "Pair 1.*device"),
    ],
)
def test_a_bad_pair_is_refused_before_any_write(F, gradient, kind, message) -> None:
    first = torch.zeros(2)
    with pytest.raises(kind, match=message):
        square_accumulate_([first, F], [torch.ones(2), gradient])
    assert not first.any()


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one length, got 1 and 0"):
        square_accumulate_([torch.zeros(1)], [])


def test_shared_memory_is_refused_before_any_write() -> None:
    F, base = torch.zeros(4), torch.zeros(8)
    for Fs, gradients, message in [
        ([F, F], [torch.ones(4)] * 2, r"F_list\[0\] and F_list\[1\] share memory"),
        ([base[:5], base[4:]], [torch.ones(5), torch.ones(4)], r"F_list\[0\] and F_list\[1\] share memory"),
        ([torch.zeros(4), F], [torch.ones(4), F], r"F_list\[1\] and grad_list\[1\] share memory"),
        ([base[:4]], [base[2:6]], r"F_list\[0\] and grad_list\[0\] share memory"),
        ([base[::2], base[4:6]], [torch.ones(4), torch.ones(2)], r"F_list\[0\] and F_list\[1\] share memory"),
    ]:
        with pytest.raises(ValueError, match=message):
            square_accumulate_(Fs, gradients)
    with pytest.raises(ValueError, match="expanded view"):
        square_accumulate_([torch.zeros(1).expand(3)], [torch.ones(3)])
    assert not F.any() and not base.any()
    same = torch.full((4,), 2.0)  # one gradient for two F is fine, and so are neighbours
    square_accumulate_([base[:4], base[4:]], [same, same])
    assert base.tolist() == [4.0] * 8
