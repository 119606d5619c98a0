from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tomfisher
from tomfisher.masks import top_fraction
from tomfisher.masks.fraction import count


def test_is_public() -> None:
    assert tomfisher.top_fraction is top_fraction


def test_takes_the_largest_and_the_lower_index_at_a_tie() -> None:
    F = {"w": torch.tensor([[1.0, 9.0, 2.0], [9.0, 2.0, 2.0]]), "v": torch.full((10,), 3.0)}
    mask = top_fraction(F, 0.5)
    assert mask["w"].tolist() == [1, 2, 3]
    assert mask["v"].tolist() == [0, 1, 2, 3, 4]
    assert mask.shapes == {"w": (2, 3), "v": (10,)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_equals_a_stable_sort_on_a_large_tensor(dtype: torch.dtype) -> None:
    values = torch.rand(211, 307).square().to(dtype)
    mask = top_fraction({"w": values}, 1e-2)
    order = values.flatten().double().sort(descending=True, stable=True).indices
    assert mask["w"].tolist() == sorted(order[: 211 * 307 // 100].tolist())


@settings(max_examples=300, deadline=None)
@given(digits=st.integers(1, 10**6 - 1), numel=st.integers(0, 10**10))
def test_count_is_the_floor_of_the_decimal_product(digits: int, numel: int) -> None:
    assert count(float(f"0.{digits:06d}"), numel) == digits * numel // 10**6


def test_count_where_float_arithmetic_fails() -> None:
    assert int(0.29 * 100) == 28 and count(0.29, 100) == 29
    assert count(0.1, 30) == 3 and count(1e-5, 10**5) == 1 and count(5e-5, 2**31) == 107374


@pytest.mark.parametrize("kappa", [0, 0.0, 1, 1.0, -0.1, 2, math.nan, math.inf])
def test_kappa_outside_0_1_is_refused(kappa: float) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        top_fraction({"w": torch.ones(10)}, kappa)


@pytest.mark.parametrize("kappa", ["0.1", True])
def test_kappa_must_be_a_number(kappa) -> None:
    with pytest.raises(TypeError, match="kappa must be a number"):
        top_fraction({"w": torch.ones(10)}, kappa)


def test_non_finite_values_are_refused_with_the_tensors_name() -> None:
    F = {"good": torch.ones(10), "layers.3.bad": torch.tensor([1.0, math.nan] * 5)}
    for scope in ("tensor", "layer", "model"):
        with pytest.raises(ValueError, match=r"'layers\.3\.bad' cannot be ranked.*nan at flat index 1"):
            top_fraction(F, 0.1, scope)
    with pytest.raises(TypeError, match="'w' cannot be ranked"):
        top_fraction({"w": torch.arange(10)}, 0.1)


@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
def test_tensors_of_several_dtypes_are_selected_from_one_by_one(scope) -> None:
    F = {
        "half": torch.tensor([1.0, 4.0]).half(),
        "brain": torch.tensor([3.0, 2.0]).bfloat16(),
        "double": torch.tensor([0.5, 8.0]).double(),
    }
    mask = top_fraction(F, 0.5, scope)
    chosen = {"half": [1], "brain": [0], "double": [1]}
    assert {name: index.tolist() for name, index in mask.items()} == chosen


def test_other_bad_arguments() -> None:
    F = {"w": torch.ones(10)}
    with pytest.raises(ValueError, match="scope must be one of tensor, layer, model, got 'row'"):
        top_fraction(F, 0.1, "row")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="compat must be None or 'authors'"):
        top_fraction(F, 0.1, compat="paper")
    with pytest.raises(ValueError, match="selects per tensor"):
        top_fraction(F, 0.1, "model", compat="authors")
    with pytest.raises(ValueError, match="no tensor"):
        top_fraction({}, 0.1)


def test_authors_rule_is_strictly_above_the_kth_value() -> None:
    values = torch.randperm(1000).float()  # no ties: k - 1 entries
    mask = top_fraction({"w": values}, 0.02, compat="authors")
    assert mask["w"].tolist() == (values > 980).nonzero().flatten().tolist() and mask.nnz == 19
    tied = torch.tensor([3.0, 3.0, 3.0, 1.0])  # the 2nd largest is tied with the largest: none
    with pytest.warns(UserWarning, match="selects no entry"):
        assert top_fraction({"w": tied}, 0.5, compat="authors").nnz == 0
    with pytest.warns(UserWarning, match="selects no entry"):
        assert top_fraction({"w": values}, 0.001, compat="authors").nnz == 0  # k = 1 gives none
