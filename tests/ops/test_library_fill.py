"""PyTorch's own checks of the registered operations: schema, mutation, fake tensors, tracing."""

from __future__ import annotations

import pytest
import torch

import tomfisher.ops  # noqa: F401  (registers the operations)

ops = torch.ops.tomfisher
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def operands(dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    weights = [torch.randn(7, 5).to(dtype), torch.randn(4, 6).to(dtype).t()]
    indices = [torch.tensor([0, 3, 34]), torch.tensor([5])]
    return weights, indices, [torch.zeros(3, dtype=dtype), torch.zeros(1, dtype=dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    weights, indices, values = operands(dtype)
    sums = torch.zeros(2, 2, dtype=torch.float64)
    F = [torch.zeros(7, 5), torch.zeros(6, 4)]
    calls = [
        (ops.weight_sums, (weights, "reference")),
        (ops.scatter_, (weights, indices, values, "reference")),
        (ops.masked_fill_mean_, (weights, indices, values, None, "reference")),
        (ops.masked_fill_mean_, (weights, indices, values, sums, "reference")),
        (ops.square_accumulate_, (F, weights, "reference")),
    ]
    for op, arguments in calls:
        results = torch.library.opcheck(op.default, arguments, test_utils=CHECKS)
        assert set(results.values()) == {"SUCCESS"}, (op, results)


def test_writes_are_seen_by_the_version_counter() -> None:
    weights, indices, values = operands(torch.float32)
    F = [torch.zeros(7, 5), torch.zeros(6, 4)]
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            for tensors, op, arguments in [
                (weights, ops.scatter_, (weights, indices, values, "reference")),
                (weights, ops.masked_fill_mean_, (weights, indices, values, None, "reference")),
                (F, ops.square_accumulate_, (F, weights, "reference")),
            ]:
                before = [tensor._version for tensor in tensors]
                op(*arguments)
                assert all(t._version > version for t, version in zip(tensors, before, strict=True))
