from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import truth
from tomfisher.ops import squared_gradient_

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
EPS = torch.finfo(torch.float32).eps


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=0, max_size=5),
    d_out=st.integers(1, 11),
    d_in=st.integers(1, 13),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
)
def test_packed_segments_with_empty_ones(lengths, d_out, d_in, dtype, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = sum(lengths)
    Y = torch.randn(rows, d_out, generator=generator).to(dtype)
    X = torch.randn(rows, d_in, generator=generator).to(dtype)
    offsets = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    bounds = list(itertools.pairwise(offsets))
    F = torch.zeros(d_out, d_in)
    assert squared_gradient_(F, Y, X, offsets=offsets) is F
    truth.assert_squared_gradient(F, Y, X, bounds)
    again = torch.zeros(d_out, d_in)
    squared_gradient_(again, Y, X, offsets=torch.tensor(offsets))
    assert torch.equal(F, again)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 64, 48, 32), (3, 37, 33, 29), (1, 1, 1, 1), (9, 5, 7, 130)])
def test_error_is_no_larger_than_eager_pytorch_in_the_same_dtype(dtype, shape) -> None:
    B, T, d_out, d_in = shape
    Y, X = torch.randn(B, T, d_out).to(dtype), torch.randn(B, T, d_in).to(dtype)
    bounds = [(b * T, (b + 1) * T) for b in range(B)]
    exact = truth.squared_gradient(Y.flatten(0, 1), X.flatten(0, 1), bounds)
    eager = sum(torch.einsum("to,ti->oi", Y[b], X[b]).square() for b in range(B))
    F = torch.zeros(d_out, d_in)
    squared_gradient_(F, Y, X)
    mine, theirs = (F.double() - exact).abs().max(), (eager.double() - exact).abs().max()
    # the slack covers a different order of summation: a few roundings of the largest entry
    assert mine <= theirs + 8 * math.sqrt(T) * EPS * exact.max()
    truth.assert_squared_gradient(F, Y.flatten(0, 1), X.flatten(0, 1), bounds)


def test_it_is_the_square_of_the_samples_sum_not_of_tokens_or_batch() -> None:
    Y = torch.tensor([[[1.0], [2.0]], [[-3.0], [0.0]]])
    X = torch.ones(2, 2, 1)
    F = torch.full((1, 1), 100.0)
    squared_gradient_(F, Y, X)
    assert F.item() == 100 + (1 + 2) ** 2 + (-3) ** 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_lengths_ignore_padding_even_if_it_is_nan(dtype) -> None:
    Y, X = torch.randn(4, 6, 5).to(dtype), torch.randn(4, 6, 3).to(dtype)
    lengths = [6, 2, 0, 5]
    for b, n in enumerate(lengths):
        Y[b, n:] = X[b, n:] = math.nan
    F = torch.zeros(5, 3)
    squared_gradient_(F, Y, X, lengths=torch.tensor(lengths))
    truth.assert_squared_gradient(
        F, Y.flatten(0, 1), X.flatten(0, 1), [(6 * b, 6 * b + n) for b, n in enumerate(lengths)]
    )


def test_rows_outside_the_offsets_are_ignored() -> None:
    Y, X = torch.randn(10, 4), torch.randn(10, 3)
    Y[:2] = X[:2] = Y[8:] = X[8:] = math.inf
    F = torch.zeros(4, 3)
    squared_gradient_(F, Y, X, offsets=[2, 5, 5, 8])
    truth.assert_squared_gradient(F, Y, X, [(2, 5), (5, 8)])


def test_targets_say_which_slice_a_segment_adds_to() -> None:
    Y, X = torch.randn(12, 4), torch.randn(12, 3)
    offsets, targets = [0, 3, 3, 7, 10, 12], [2, 0, 2, 1, 2]
    start = torch.rand(4, 4, 3)
    F = start.clone()
    squared_gradient_(F, Y, X, offsets=offsets, targets=targets)
    bounds = list(itertools.pairwise(offsets))
    for e in range(3):
        mine = [b for b, t in zip(bounds, targets, strict=True) if t == e]
        added = F[e].double() - start[e].double()
        assert (
            (added - truth.squared_gradient(Y, X, mine)).abs()
            <= truth.squared_gradient_rounding(Y, X, mine) + 4 * EPS * F[e].double()
        ).all()
    assert torch.equal(F[3], start[3])


def test_transposed_and_sliced_operands() -> None:
    wide = torch.randn(3, 14, 7)
    Y, X = wide.transpose(1, 2)[:, :, ::2], torch.randn(3, 9, 10)[:, 2:, 1:9:2]
    assert not Y.is_contiguous() and not X.is_contiguous()
    F = torch.zeros(7, 4)
    squared_gradient_(F, Y, X)
    truth.assert_squared_gradient(F, Y.reshape(-1, 7), X.reshape(-1, 4), [(0, 7), (7, 14), (14, 21)])


def test_swapped_operands_give_the_transpose() -> None:
    Y, X = torch.randn(2, 5, 4), torch.randn(2, 5, 3)
    linear, conv1d = torch.zeros(4, 3), torch.zeros(3, 4)
    squared_gradient_(linear, Y, X)
    squared_gradient_(conv1d, X, Y)
    torch.testing.assert_close(linear, conv1d.t())


def test_no_sample_and_no_token() -> None:
    F = torch.ones(4, 3)
    squared_gradient_(F, torch.empty(0, 5, 4), torch.empty(0, 5, 3))
    squared_gradient_(F, torch.empty(2, 0, 4), torch.empty(2, 0, 3))
    squared_gradient_(F, torch.empty(0, 4), torch.empty(0, 3), offsets=[0, 0])
    assert torch.equal(F, torch.ones(4, 3))


def test_equals_autograd_on_a_linear_layer() -> None:
    layer = torch.nn.Linear(6, 5, bias=False, dtype=torch.float64)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    output = layer(x)
    losses = output.sin().sum((1, 2))
    grads = [torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for loss in losses]
    (grad_output,) = torch.autograd.grad(losses.sum(), output)
    F = torch.zeros(5, 6)
    squared_gradient_(F, grad_output.float(), x.float())
    torch.testing.assert_close(F.double(), sum(g.square() for g in grads), rtol=1e-5, atol=1e-6)


def base() -> dict:
    return {"F": torch.full((4, 3), 7.0), "grad_output": torch.randn(2, 5, 4), "input": torch.randn(2, 5, 3)}


def packed() -> dict:
    return {"F": torch.full((4, 3), 7.0), "grad_output": torch.randn(10, 4), "input": torch.randn(10, 3)}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({**base(), "F": torch.full((4, 3), 7.0).double()}, TypeError, "F must be float32"),
        ({**base(), "input": torch.randn(2, 5, 3).half()}, TypeError, "share one floating-point dtype"),
        ({**base(), "input": torch.randn(2, 4, 3)}, ValueError, "equal leading dimensions"),
        ({**base(), "input": torch.randn(2, 5, 4)}, ValueError, r"\[d_out, d_in\] = \[4, 4\]"),
        ({**base(), "input": torch.randn(2, 5, 3, device="meta")}, ValueError, "one device"),
        ({**base(), "F": torch.full((3, 4), 7.0).t()}, ValueError, "contiguous with 2 dimensions"),
        ({**base(), "F": torch.full((1, 4, 3), 7.0)}, ValueError, "contiguous with 2 dimensions"),
        ({**base(), "offsets": [0, 10]}, ValueError, "offsets belong to packed"),
        ({**base(), "lengths": [5]}, ValueError, "lengths must be 2 numbers"),
        ({**base(), "lengths": [5, 6]}, ValueError, "between 0 and 5"),
        ({**base(), "lengths": [5, -1]}, ValueError, "between 0 and 5"),
        ({**packed(), "lengths": [5, 5]}, ValueError, "lengths belong to"),
        ({**packed(), "offsets": [0, 6, 5]}, ValueError, "offsets must rise"),
        ({**packed(), "offsets": [0, 11]}, ValueError, "offsets must rise"),
        ({**packed(), "offsets": [-1, 5]}, ValueError, "offsets must rise"),
        ({**packed(), "offsets": []}, ValueError, "offsets must rise"),
        ({**packed(), "offsets": [0, 1.9, 3.7]}, TypeError, r"offsets must be integers, got \[0, 1.9, 3.7\]"),
        ({**packed(), "offsets": torch.tensor([0.0, 10.0])}, TypeError, "offsets must be integers"),
        ({**packed(), "offsets": torch.tensor([[0, 10]])}, TypeError, "offsets must be integers"),
        ({**base(), "lengths": [5, 4.0]}, TypeError, "lengths must be integers"),
        ({**base(), "lengths": [5, "4"]}, TypeError, "lengths must be integers"),
        ({**base(), "impl": "fast"}, ValueError, "impl must be"),
        (
            {**base(), "precision": "bf16"},
            ValueError,
            "precision must be one of ieee, tf32x3, tf32, got 'bf16'",
        ),
        ({**base(), "impl": "triton"}, RuntimeError, "impl='triton' needs CUDA tensors"),
    ],
)
def test_bad_input_leaves_F_untouched(arguments: dict, kind: type[Exception], message: str) -> None:
    F = arguments["F"]
    with pytest.raises(kind, match=message):
        squared_gradient_(**arguments)
    assert (F == 7.0).all()


@pytest.mark.parametrize(
    ("targets", "kind", "message"),
    [
        ([0], ValueError, "must be 2 numbers"),
        ([0, 2], ValueError, "between 0 and 1"),
        ([0, 0.5], TypeError, "targets must be integers"),
    ],
)
def test_bad_targets_leave_F_untouched(targets: list[int], kind: type[Exception], message: str) -> None:
    F = torch.full((2, 4, 3), 7.0)
    with pytest.raises(kind, match=message):
        squared_gradient_(F, torch.randn(10, 4), torch.randn(10, 3), offsets=[0, 5, 10], targets=targets)
    with pytest.raises(ValueError, match="3 dimensions"):
        squared_gradient_(F[0], torch.randn(10, 4), torch.randn(10, 3), targets=[0])
    assert (F == 7.0).all()


def test_integers_of_other_kinds_are_integers() -> None:
    Y, X, F = torch.randn(10, 4), torch.randn(10, 3), torch.zeros(1, 4, 3)
    expected = squared_gradient_(F.clone(), Y, X, offsets=[0, 6, 10], targets=[0, 0])
    offsets, targets = np.array([0, 6, 10]), [torch.tensor(0), np.int32(0)]
    assert torch.equal(squared_gradient_(F, Y, X, offsets=offsets, targets=targets), expected)


def test_F_must_not_share_memory_with_an_operand() -> None:
    F = torch.full((4, 4), 7.0)
    with pytest.raises(ValueError, match="shares memory"):
        squared_gradient_(F, F, torch.randn(4, 4))
    assert (F == 7.0).all()
