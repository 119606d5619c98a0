"""The registered operators keep PyTorch's rules: schema, no aliasing, and fake tensors that tell the truth."""

from __future__ import annotations

import pytest
import torch

from tomfisher.ops import rope_energy, sink_mass, topk, topk_across, topk_summary

CASES = {
    "topk": ([torch.randn(30), torch.empty(0), torch.randn(5)], [7, 0, 5], None, "reference", False),
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


def test_the_public_functions_run_under_fake_tensors() -> None:
    with torch._subclasses.FakeTensorMode():
        for found in (topk(torch.empty(10), 3), *topk([torch.empty(4), torch.empty(5, 2)], 3)):
            assert found.values.shape == found.indices.shape == (3,) and found.threshold.shape == ()
        both = topk_summary(torch.empty(10).double(), 3, [0.5])
        assert both.top.values.shape == (3,) and both.summary.above.shape == (1,)
        assert both.summary.histogram.shape == (2048 - 1 + 2,) and both.summary.max.dtype == torch.float64
        across = topk_across([torch.empty(10), torch.empty(4)], 12)
        assert across.values.shape == across.owners.shape == across.indices.shape == (12,)
        x = torch.empty(2, 4, 6, 8)
        assert rope_energy(x).energy.shape == (6, 4)
        assert sink_mass(x, x, 0.5).entropy.shape == (2, 4, 6)


def test_a_graph_without_breaks_gives_the_same_and_still_refuses_what_is_not_finite() -> None:
    def both(values: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, ...]:
        both = topk_summary(other, 2, [0.0])
        return (*topk(values, 3), *topk_across([values, other], 4), *both.top, *both.summary)

    compiled = torch.compile(both, backend="eager", fullgraph=True)
    operands = torch.randn(5, 6), torch.randn(7)
    for got, want in zip(compiled(*operands), both(*operands), strict=True):
        assert torch.equal(got, want)
    operands[0][2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"values must be finite.*nan at flat index 13"):
        compiled(*operands)
    across = torch.compile(topk_across, backend="eager", fullgraph=True)
    with pytest.raises(ValueError, match=r"tensors\[1\] must be finite.*inf at flat index 2"):
        across([torch.ones(2), torch.tensor([1.0, 2.0, torch.inf])], 1)
