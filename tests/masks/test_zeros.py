"""Weights that no sample reached have F = 0, and no mask ever holds one of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tomfisher import FisherDiagonal
from tomfisher.masks import difference_masks, rank, top_fraction

SCOPES = ["tensor", "layer", "model"]


def sparse(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All zero, one entry of a hundred, a third of the entries, and a full tensor."""
    generator = torch.Generator().manual_seed(0)
    F = {
        "layers.0.unused.weight": torch.zeros(10, 10),
        "layers.0.minus.weight": -torch.zeros(10, 10),
        "layers.1.once.weight": torch.zeros(10, 10),
        "layers.1.third.weight": torch.rand(10, 10, generator=generator),
        "layers.2.used.weight": torch.rand(10, 10, generator=generator) + 0.5,
    }
    F["layers.1.once.weight"][3, 3] = 1.0
    F["layers.1.third.weight"].masked_fill_(torch.rand(10, 10, generator=generator) > 0.3, 0.0)
    return {name: values.to(dtype) for name, values in F.items()}


def chosen(F: dict[str, Tensor], mask: object) -> Tensor:
    return torch.cat([F[name].flatten()[mask[name]] for name in F])  # type: ignore[index]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kappa", [0.01, 0.4, 0.99])
@pytest.mark.filterwarnings("ignore:In . of . tensors")
def test_no_zero_is_chosen_and_every_other_entry_can_be(scope, dtype: torch.dtype, kappa: float) -> None:
    F = sparse(dtype)
    mask = top_fraction(F, kappa, scope)
    assert (chosen(F, mask) > 0).all()
    if kappa == 0.99:
        wanted = {n: min(99, int((v > 0).sum())) for n, v in F.items()}
        if scope == "tensor":
            assert mask.counts() == wanted
        assert mask.nnz >= sum(wanted.values())


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.filterwarnings("ignore:In . of . tensors")
def test_a_store_on_disk_gives_the_same(tmp_path: Path, scope) -> None:
    F = FisherDiagonal(sparse(), 3, 30)
    F.save(tmp_path / "F")
    stored = FisherDiagonal.load(tmp_path / "F")
    for kappa in (0.05, 0.4):
        assert top_fraction(stored, kappa, scope) == top_fraction(sparse(), kappa, scope)
        with_summary = rank(stored, kappa, scope, thresholds=()).mask(kappa)
        assert with_summary == top_fraction(sparse(), kappa, scope)


@pytest.mark.filterwarnings("ignore:In . of . tensors")
def test_the_papers_rule_stays_strict_and_never_takes_a_zero() -> None:
    F = sparse()
    for kappa in (0.01, 0.02, 0.2, 0.4, 0.99):
        mask = top_fraction(F, kappa, compat="authors")
        for name, values in F.items():
            threshold = values.flatten().sort(descending=True).values[int(100 * kappa) - 1]
            assert mask[name].tolist() == (values.flatten() > threshold).nonzero().flatten().tolist()
        assert (chosen(F, mask) > 0).all()


@pytest.mark.filterwarnings("ignore:In . of . tensors")
def test_differences_and_random_masks_follow_the_counts() -> None:
    task, control = sparse(), sparse()
    control["layers.1.once.weight"].zero_()
    (mask,) = difference_masks(task, control, [0.4]).values()
    assert mask.counts()["layers.1.once.weight"] == 1 and mask.counts()["layers.0.unused.weight"] == 0
    assert (chosen(task, mask) > 0).all()
    whole = top_fraction(task, 0.4)
    assert whole.random_like(0).counts() == whole.counts()


def test_a_shortage_is_said_once_in_one_line_with_the_numbers() -> None:
    F = sparse() | {f"layers.{i}.idle.weight": torch.zeros(5, 4) for i in range(3)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ranking = rank(F, 0.4)
        for kappa in (0.4, 0.2, 0.1):
            ranking.mask(kappa)
    (said,) = {str(w.message) for w in caught}
    assert len(caught) == 1 and "\n" not in said
    assert said.startswith("In 7 of 8 tensors or groups fewer entries are above zero than kappa=0.4 asks for")
    assert "layers.*.once.weight (1 of 40)" in said and "3 x layers.*.idle.weight (0 of 8)" in said


def test_thresholds_are_those_of_what_is_chosen() -> None:
    F = sparse()
    with pytest.warns(UserWarning, match="above zero"):
        thresholds = rank(F, 0.4).thresholds(0.4)
    assert thresholds[0] is None and thresholds[2] == 1.0
    assert thresholds[3] == float(F["layers.1.third.weight"][F["layers.1.third.weight"] > 0].min())
