"""Singular values of the change equal those of the dense matrix."""

from __future__ import annotations

import math

import pytest
import torch

from tomfisher import SparseMask, perturb
from tomfisher.analysis import effective_rank, low_rank, mask_profile
from tomfisher.analysis.low_rank import change_ranks, singular_values
from tomfisher.runtime.structure import layer_index


def random_mask(model, fraction, seed=0):
    shapes = {
        n: tuple(w.shape) for n, w in model.named_parameters() if w.ndim > 1 and layer_index(n) is not None
    }
    some = {n: torch.arange(max(1, int(fraction * torch.Size(s).numel()))) for n, s in shapes.items()}
    return SparseMask(some, shapes).random_like(seed)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("fraction", [0.01, 0.3])
def test_change_ranks_equal_the_dense_decomposition(lab, name, fraction):
    model = lab.build(name)
    mask = random_mask(model, fraction)
    before = {n: w.detach().double().clone() for n, w in model.named_parameters()}
    with perturb(model, mask):
        change = {n: w.detach().double() - before[n] for n, w in model.named_parameters()}
    found = change_ranks(model, mask)
    assert all(torch.equal(w.double(), before[n]) for n, w in model.named_parameters())
    assert {r.tensor.partition("[")[0] for r in found} == set(mask)
    for ranks in found:
        tensor, _, expert = ranks.tensor.partition("[")
        dense = change[tensor][int(expert[:-1])] if expert else change[tensor]
        exact = torch.linalg.svdvals(dense)
        n = len(ranks.singular)
        assert torch.allclose(ranks.singular, exact[:n], rtol=1e-10, atol=1e-12 * float(exact[0]))
        assert float(exact[n:].sum()) <= 1e-12 * max(float(exact[0]), 1e-30) * len(exact)
        p = exact / exact.sum()
        entropy = -float((p * p.clamp_min(1e-300).log()).sum())
        assert ranks.effective_rank == pytest.approx(math.exp(entropy), rel=1e-9)
        assert ranks.stable_rank == pytest.approx(float(exact.square().sum() / exact[0] ** 2))
        assert ranks.norm == pytest.approx(float(dense.norm())) and ranks.full == min(dense.shape)


def test_effective_rank_of_known_spectra():
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0
    halves = torch.tensor([2.0, 1.0, 1.0])
    assert effective_rank(halves) == pytest.approx(2**1.5)


def test_a_row_a_diagonal_and_nothing():
    i = torch.arange(5)
    values = torch.tensor([1.0, -2.0, 3.0, 0.5, 4.0])
    assert singular_values(torch.zeros(5, dtype=torch.int64), i, values).tolist() == pytest.approx(
        [float(values.norm())]
    )
    assert singular_values(i, i + 90, values).tolist() == [4.0, 3.0, 2.0, 1.0, 0.5]
    assert singular_values(i[:0], i[:0], values[:0]).tolist() == []
    assert singular_values(i, i, torch.zeros(5)).tolist() == []


def test_a_planted_row_is_of_rank_one_beside_a_random_mask_of_many(lab):
    model = lab.build("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    shape = tuple(model.get_parameter(name).shape)
    mask = SparseMask({name: torch.arange(20) + 3 * shape[1]}, {name: shape})
    profile = mask_profile(mask, model, fill="zero")
    (row,) = profile.sparsity()
    assert (row["kind"], row["rows"], row["columns"], row["masked"]) == ("mlp.up_proj", 1, 20, 20)
    assert row["effective_rank"] == pytest.approx(1) and row["effective_rank_random"] > 5
    (matrix,) = profile.matrices
    assert matrix.change.norm == pytest.approx(model.get_parameter(name)[3, :20].norm().item())
    assert matrix.change.to_dict()["spectrum"].tolist() == [1.0]


def test_what_cannot_be_decomposed_is_said_and_the_rest_is_there(lab, monkeypatch):
    model = lab.build("llama")
    monkeypatch.setattr(low_rank, "BLOCK", 2)
    profile = mask_profile(random_mask(model, 0.2), model)
    assert "singular values are taken of up to 2" in profile.unavailable["change"]
    assert "effective_rank" not in profile.sparsity()[0] and profile.sparsity()[0]["rows"] > 1
    assert all(matrix.change is None and matrix.name in matrix.unranked for matrix in profile.matrices)
    whole = {n: tuple(w.shape) for n, w in model.named_parameters() if n.endswith("0.mlp.up_proj.weight")}
    full = SparseMask({n: torch.arange(s[0] * s[1]) for n, s in whole.items()}, whole)
    assert "masked entirely" in mask_profile(full, model).unavailable["change"]


BLOCKED = "model.layers.0.self_attn.q_proj.weight"
FULL = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("which", ["blocked", "masked entirely"])
def test_one_matrix_without_ranks_leaves_the_others_theirs(lab, monkeypatch, which):
    model = lab.build("llama")
    mask = random_mask(model, 0.003)
    plain = {m.name: m for m in mask_profile(mask, model).matrices}
    bad = BLOCKED if which == "blocked" else FULL
    numel = torch.Size(mask.shapes[bad]).numel()
    entries = torch.arange(numel // 2 if which == "blocked" else numel)
    mask = SparseMask({**mask, bad: entries}, mask.shapes)
    monkeypatch.setattr(low_rank, "BLOCK", 15)  # half of 32 rows, all columns: a block of 16
    profile = mask_profile(mask, model)
    reason = "singular values are taken of up to 15" if which == "blocked" else f"{FULL} is masked entirely"
    for matrix in profile.matrices:
        if matrix.name == bad:
            assert matrix.change is None is matrix.random_change and reason in matrix.unranked
            assert matrix.to_dict()["change"] is None and matrix.to_dict()["unranked"] == matrix.unranked
            assert matrix.spread.masked == len(entries)
        else:
            assert torch.equal(matrix.change.singular, plain[matrix.name].change.singular)
            assert matrix.random_change is not None and matrix.unranked is None
            assert "unranked" not in matrix.to_dict()
    said = profile.unavailable["change"]
    assert said.startswith(f"1 of {len(profile.matrices)} matrices have none; {bad}: ") and reason in said
    rows = {row["kind"]: row for row in profile.sparsity()}
    kind = "self_attn.q_proj" if which == "blocked" else "mlp.up_proj"
    assert {name: row["ranked"] for name, row in rows.items()} == {
        name: 1 if name == kind else 2 for name in rows
    }
    other = next(m for m in profile.matrices if m.name != bad and kind in m.name)
    assert rows[kind]["effective_rank"] == pytest.approx(other.change.effective_rank)
    assert len({tuple(row) for row in rows.values()}) == 1  # one heading for all rows
