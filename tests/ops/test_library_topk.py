"""The registered operators keep PyTorch's rules: schema, no aliasing, and fake tensors that tell the truth."""

from __future__ import annotations

import pytest
import torch

import tomfisher.ops  # noqa: F401  (registers the operators)

CASES = {
    "topk": ([torch.randn(30), torch.empty(0), torch.randn(5).double()], [7, 0, 5], "reference"),
    "topk_across": ([torch.randn(30), torch.empty(0), torch.randn(5)], 12, "reference"),
    "rope_energy": (torch.randn(2, 6, 3, 8).transpose(1, 2), 3, True, [2, 3], "reference"),
    "sink_mass": (
        torch.randn(2, 4, 6, 8),
        torch.randn(2, 2, 6, 8),
        0.3,
        True,
        [6, 4],
        1,
        torch.rand(4),
        3,
        "reference",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name: str) -> None:
    operator = getattr(torch.ops.tomfisher, name).default
    torch.library.opcheck(operator, CASES[name])


def test_opcheck_without_the_optional_arguments() -> None:
    q = torch.randn(1, 2, 5, 4)
    torch.library.opcheck(
        torch.ops.tomfisher.sink_mass.default, (q, q.clone(), 0.5, False, [5], 2, None, None, "reference")
    )


def test_the_operators_run_under_fake_tensors() -> None:
    with torch._subclasses.FakeTensorMode():
        indices, status = torch.ops.tomfisher.topk([torch.empty(10), torch.empty(4)], [3, 4], "auto")
        assert [len(index) for index in indices] == [3, 4] and status.shape == (2,)
