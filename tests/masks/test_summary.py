"""Summaries of every tensor of a Fisher diagonal, in memory and from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tomfisher import FisherDiagonal
from tomfisher.masks import rank, summary
from tomfisher.masks.ranking import Scope


def fisher() -> FisherDiagonal:
    g = torch.Generator().manual_seed(0)
    shapes = {"model.layers.0.q.weight": (40, 30), "embed.weight": (1100, 90)}
    values = {name: torch.randn(shape, generator=g).square() for name, shape in shapes.items()}
    return FisherDiagonal(values, 3, 30, {}, {"definition": {"labels": "empirical"}})


def test_it_counts_every_tensor_and_agrees_with_the_ranking() -> None:
    F = fisher()
    lists = rank(F, 0.1).lists
    thresholds = [float(top.values[-1]) for top in lists]
    found = summary(F, thresholds)
    assert list(found) == list(F)
    for i, (name, top) in enumerate(zip(found, lists, strict=True)):
        assert found[name].above[i] == len(top.values) - 1  # without ties all but the k-th are above it
        assert found[name].max == top.values[0] and found[name].histogram.sum() == F[name].numel()


def test_a_store_is_summed_up_without_loading_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = summary(fisher(), [0.5])
    fisher().save(tmp_path / "F")
    stored = FisherDiagonal.load(tmp_path / "F")

    def forbidden(self: FisherDiagonal, name: str) -> Tensor:
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(FisherDiagonal, "__getitem__", forbidden)
    for name, found in summary(stored, [0.5]).items():
        assert all(torch.equal(a, b) for a, b in zip(found, expected[name], strict=True))


@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
def test_a_ranking_gives_the_summaries_of_its_pass(
    tmp_path: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    F, thresholds = fisher(), [0.5, 3.0]
    expected, alone = summary(F, thresholds), rank(F, 0.1, scope)
    F.save(tmp_path / "F")
    stored = FisherDiagonal.load(tmp_path / "F")

    def forbidden(*args: object) -> None:
        raise AssertionError("another pass")

    for other in ("topk", "summary"):
        monkeypatch.setattr(f"tomfisher.ops.{other}", forbidden)
    for source in (F, stored):
        ranking = rank(source, 0.1, scope, thresholds=thresholds)
        assert ranking.mask(0.05) == alone.mask(0.05)
        assert list(ranking.summaries) == list(F)
        for name, found in ranking.summaries.items():
            assert all(torch.equal(a, b) for a, b in zip(found, expected[name], strict=True))
    assert alone.summaries == {}


def test_a_ranking_without_thresholds_has_the_histograms_alone() -> None:
    found = rank({"w": torch.tensor([0.0, 1.0, 3.0])}, 0.5, thresholds=()).summaries["w"]
    assert len(found.above) == 0 and int(found.histogram.sum()) == 3 and int(found.histogram[1]) == 1


def test_what_cannot_be_counted_is_named() -> None:
    with pytest.raises(ValueError, match=r"'w' cannot be summed up: .*nan at flat index 1"):
        summary({"v": torch.ones(2), "w": torch.tensor([1.0, torch.nan])})
    with pytest.raises(TypeError, match="'w' cannot be summed up"):
        summary({"w": torch.arange(3)})
