from __future__ import annotations

import pytest
import torch

kernels = pytest.importorskip("tomfisher.kernels.squared_gradient_hopper")


def test_it_is_refused_where_there_is_no_hopper() -> None:
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9:
        pytest.skip("there is one")
    Y, X = torch.randn(4, 32).bfloat16(), torch.randn(4, 48).bfloat16()
    with pytest.raises(
        RuntimeError, match=r"needs tensors on a Hopper GPU \(compute capability 9\), got cpu"
    ):
        kernels.squared_gradient(torch.zeros(32, 48), Y, X, [(0, 4)])


def test_coordinates_of_a_block_lead_to_its_rows_and_no_further() -> None:
    width, row_stride = 512, 528
    shape, strides = kernels.ragged(width, row_stride)
    for first, rows in ((0, 1), (7, 64), (2**30 - 64, 33)):
        for within in range(65):
            at = (2**30, first + rows, 2**30 - rows + within, 5)
            inside = all(c < size for c, size in zip(at, shape, strict=True))
            assert inside == (within < rows)
            address = sum(c * stride for c, stride in zip(at, strides, strict=True))
            assert 2 * address % 2**64 == 2 * ((first + within) * row_stride + 5)
