"""Every registered operation keeps torch.library's contract: schema, fake kernel, autograd registration, AOT."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tomfisher.ops

Arguments = tuple[object, ...]


def squared_gradient_() -> Arguments:
    return torch.zeros(5, 3), torch.randn(9, 5), torch.randn(9, 3), [0, 4], [4, 9], None, "reference"


def squared_gradient_of_experts() -> Arguments:
    return torch.zeros(2, 5, 3), torch.randn(9, 5), torch.randn(9, 3), [0, 4], [4, 9], [1, 0], "reference"


def square_accumulate_() -> Arguments:
    return [torch.zeros(3, 2), torch.zeros(7)], [torch.randn(3, 2), torch.randn(7)], "reference"


def weight_sums() -> Arguments:
    return [torch.randn(3, 2), torch.randn(7).half()], "reference"


def positions() -> list[Tensor]:
    return [torch.tensor([0, 5]), torch.tensor([3])]


def masked_fill_mean_() -> Arguments:
    return (
        [torch.randn(3, 2), torch.randn(7)],
        positions(),
        [torch.empty(2), torch.empty(1)],
        None,
        "reference",
    )


def scatter_() -> Arguments:
    return [torch.randn(3, 2), torch.randn(7)], positions(), [torch.randn(2), torch.randn(1)], "reference"


def topk() -> Arguments:
    return [torch.randn(30), torch.empty(0), torch.randn(5)], [7, 0, 5], None, "reference", False


def topk_summary() -> Arguments:
    return [torch.randn(20).half(), torch.empty(0).half()], [4, 0], [0.5, -1.0, 2.0], "reference", False


def topk_across() -> Arguments:
    return [torch.randn(30), torch.empty(0), torch.randn(5)], 12, "reference"


def rope_energy() -> Arguments:
    return torch.randn(2, 5, 3, 8), 4, False, [5, 2], "reference"


def rope_energy_interleaved() -> Arguments:
    return torch.randn(2, 6, 3, 8).transpose(1, 2), 3, True, [2, 3], "reference"


def sink_mass() -> Arguments:
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    return q, k, 1 / math.sqrt(8), True, [6, 3], 1, None, None, "reference"


def sink_mass_with_slopes_and_a_window() -> Arguments:
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    return q, k, 0.3, True, [6, 4], 1, torch.rand(4), 3, "reference"


CALLS: list[tuple[str, Callable[[], Arguments]]] = [
    ("squared_gradient_", squared_gradient_),
    ("squared_gradient_", squared_gradient_of_experts),
    ("square_accumulate_", square_accumulate_),
    ("weight_sums", weight_sums),
    ("masked_fill_mean_", masked_fill_mean_),
    ("scatter_", scatter_),
    ("topk", topk),
    ("topk", topk_summary),
    ("topk_across", topk_across),
    ("rope_energy", rope_energy),
    ("rope_energy", rope_energy_interleaved),
    ("sink_mass", sink_mass),
    ("sink_mass", sink_mass_with_slopes_and_a_window),
]


@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=[arguments.__name__ for _, arguments in CALLS])
def test_opcheck(name: str, arguments: Callable[[], Arguments]) -> None:
    results = torch.library.opcheck(getattr(torch.ops.tomfisher, name).default, arguments())
    assert set(results.values()) == {"SUCCESS"}


def test_no_operation_is_forgotten() -> None:
    registered = {
        name.removeprefix("tomfisher::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("tomfisher::")
    }
    assert registered == {name for name, _ in CALLS}


@pytest.mark.parametrize("grad", [False, True])
def test_operands_that_require_gradients_leave_F_without_one(grad: bool) -> None:
    F, Y, X = torch.zeros(5, 3), torch.randn(9, 5, requires_grad=grad), torch.randn(9, 3, requires_grad=grad)
    tomfisher.ops.squared_gradient_(F, Y, X)
    assert not F.requires_grad and F.grad_fn is None
    assert torch.equal(F > 0, torch.ones(5, 3, dtype=torch.bool))


@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_autograd_notices_that_F_was_written(impl: tomfisher.ops.Impl) -> None:
    F, weight = torch.zeros(5, 3), torch.ones(5, 3, requires_grad=True)
    product = (F * weight).sum()  # its backward pass needs F as it is now
    tomfisher.ops.squared_gradient_(F, torch.randn(9, 5), torch.randn(9, 3), impl=impl)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_F_made_in_inference_mode_can_be_added_to_in_it() -> None:
    with torch.inference_mode():
        F = torch.zeros(5, 3)
        tomfisher.ops.squared_gradient_(F, torch.ones(9, 5), torch.ones(9, 3))
        assert (F == 81).all()


def test_it_traces_with_fake_tensors_whatever_the_implementation() -> None:
    with torch._subclasses.FakeTensorMode():
        F = torch.zeros(5, 3, device="cuda")
        Y, X = torch.empty(9, 5, device="cuda"), torch.empty(9, 3, device="cuda")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert tomfisher.ops.squared_gradient_(F, Y, X, offsets=[0, 9]) is F


@pytest.mark.parametrize("lengths", [None, [4, 1]])
def test_squared_gradient_compiles_without_a_break(lengths: list[int] | None) -> None:
    def step(F: Tensor, Y: Tensor, X: Tensor) -> Tensor:
        return tomfisher.ops.squared_gradient_(F, 2 * Y, X, lengths=lengths) + 1

    Y, X = torch.randn(2, 4, 5), torch.randn(2, 4, 3)
    eager, compiled = torch.zeros(5, 3), torch.zeros(5, 3)
    expected = step(eager, Y, X)
    found = torch.compile(step, backend="eager", fullgraph=True)(compiled, Y, X)
    assert torch.equal(found, expected) and torch.equal(compiled, eager)


def test_the_public_functions_run_under_fake_tensors() -> None:
    with torch._subclasses.FakeTensorMode():
        for found in (
            tomfisher.ops.topk(torch.empty(10), 3),
            *tomfisher.ops.topk([torch.empty(4), torch.empty(5, 2)], 3),
        ):
            assert found.values.shape == found.indices.shape == (3,) and found.threshold.shape == ()
        both = tomfisher.ops.topk_summary(torch.empty(10).double(), 3, [0.5])
        assert both.top.values.shape == (3,) and both.summary.above.shape == (1,)
        assert both.summary.histogram.shape == (2048 - 1 + 2,) and both.summary.max.dtype == torch.float64
        across = tomfisher.ops.topk_across([torch.empty(10), torch.empty(4)], 12)
        assert across.values.shape == across.owners.shape == across.indices.shape == (12,)
        x = torch.empty(2, 4, 6, 8)
        assert tomfisher.ops.rope_energy(x).energy.shape == (6, 4)
        assert tomfisher.ops.sink_mass(x, x, 0.5).entropy.shape == (2, 4, 6)


def test_a_graph_without_breaks_gives_the_same_and_still_refuses_what_is_not_finite() -> None:
    def both(values: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        both = tomfisher.ops.topk_summary(other, 2, [0.0])
        return (
            *tomfisher.ops.topk(values, 3),
            *tomfisher.ops.topk_across([values, other], 4),
            *both.top,
            *both.summary,
        )

    compiled = torch.compile(both, backend="eager", fullgraph=True)
    operands = torch.randn(5, 6), torch.randn(7)
    for got, want in zip(compiled(*operands), both(*operands), strict=True):
        assert torch.equal(got, want)
    operands[0][2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"values must be finite.*nan at flat index 13"):
        compiled(*operands)
    across = torch.compile(tomfisher.ops.topk_across, backend="eager", fullgraph=True)
    with pytest.raises(ValueError, match=r"tensors\[1\] must be finite.*inf at flat index 2"):
        across([torch.ones(2), torch.tensor([1.0, 2.0, torch.inf])], 1)
