from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import ClassVar

import pytest
import torch

from tomfisher.masks import rank, top_fraction


def fisher(seed: int = 0) -> dict[str, torch.Tensor]:
    """Three layers and two tensors outside, with many ties."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "embed.weight": (30, 8),
        "model.layers.0.q.weight": (16, 12),
        "model.layers.0.k.weight": (8, 12),
        "model.layers.1.q.weight": (16, 12),
        "model.layers.10.q.weight": (16, 12),
        "norm.weight": (50,),
    }
    return {n: torch.randint(0, 12, s, generator=generator).float() for n, s in shapes.items()}


def oracle(F: dict[str, torch.Tensor], groups: list[list[str]], kappa_100: int) -> dict[str, list[int]]:
    """Python's stable sort over (value, tensor, index), κ given in hundredths so that k is integer arithmetic."""
    chosen: dict[str, list[int]] = {name: [] for name in F}
    for group in groups:
        entries = [
            (-value, position, index)
            for position, name in enumerate(group)
            for index, value in enumerate(F[name].flatten().tolist())
        ]
        wanted = kappa_100 * len(entries) // 100
        for value, position, index in sorted(entries)[:wanted]:
            if value < 0:  # an entry of 0 is never chosen
                chosen[group[position]].append(index)
    return {name: sorted(index) for name, index in chosen.items()}


GROUPS = {
    "tensor": [[name] for name in fisher()],
    "layer": [
        ["embed.weight", "norm.weight"],
        ["model.layers.0.q.weight", "model.layers.0.k.weight"],
        ["model.layers.1.q.weight"],
        ["model.layers.10.q.weight"],
    ],
    "model": [list(fisher())],
}


@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
def test_every_smaller_kappa_is_a_prefix_that_equals_a_fresh_selection(scope) -> None:
    F = fisher()
    ranking = rank(F, 0.58, scope)
    for hundredths in (58, 57, 29, 10, 7, 3):
        mask = ranking.mask(hundredths / 100)
        assert {n: i.tolist() for n, i in mask.items()} == oracle(F, GROUPS[scope], hundredths)
        assert mask == top_fraction(F, hundredths / 100, scope)
        assert (mask.kappa, mask.scope, list(mask)) == (hundredths / 100, scope, list(F))


def test_a_sweep_does_not_select_again(monkeypatch) -> None:
    task, control = rank(fisher(0), 0.2), rank(fisher(1), 0.2)

    def forbidden(*args: object) -> None:
        raise AssertionError("selected again")

    monkeypatch.setattr("tomfisher.ops.topk", forbidden)
    for kappa in (0.2, 0.1, 0.05):
        mask = task.mask(kappa) - control.mask(kappa)
        assert 0 < mask.nnz <= task.mask(kappa).nnz
        assert (mask & control.mask(kappa)).nnz == 0


def test_masks_do_not_change_when_the_values_do() -> None:
    F = fisher()
    ranking = rank(F, 0.1)
    before = ranking.mask(0.1)
    for values in F.values():
        values.zero_()
    assert ranking.mask(0.1) == before


def test_kappa_above_the_rankings_is_refused() -> None:
    ranking = rank(fisher(), 0.1)
    with pytest.raises(ValueError, match=r"at most 0\.1.*got 0\.2"):
        ranking.mask(0.2)


def test_authors_rule_sweeps_too() -> None:
    F = {"w": torch.tensor([5.0, 4.0, 4.0, 3.0, 2.0, 2.0, 2.0, 1.0, 0.5, 0.25])}
    ranking = rank(F, 0.9, compat="authors")
    for kappa in (0.9, 0.7, 0.5, 0.3, 0.2):
        k = int(10 * kappa)
        threshold = F["w"].sort(descending=True).values[k - 1]
        expected = (F["w"] > threshold).nonzero().flatten().tolist()
        assert ranking.mask(kappa)["w"].tolist() == expected
        assert ranking.mask(kappa) == top_fraction(F, kappa, compat="authors")


class Lazy(Mapping[str, torch.Tensor]):
    """Makes every tensor anew and counts how many of them are alive."""

    def __init__(self) -> None:
        self.alive = self.most = 0
        self.size = 4000

    def __getitem__(self, name: str) -> torch.Tensor:
        import weakref

        tensor = torch.arange(self.size, dtype=torch.float32) * (1 + int(name))
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(tensor, self.died)
        return tensor

    def died(self) -> None:
        self.alive -= 1

    def __iter__(self) -> Iterator[str]:
        return map(str, range(20))

    def __len__(self) -> int:
        return 20


@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
def test_a_lazy_mapping_is_read_one_tensor_at_a_time(scope) -> None:
    F = Lazy()
    mask = rank(F, 0.01, scope).mask(0.01)
    assert mask.nnz == 800
    assert F.most <= 2  # the next one is made before the last one's name is rebound


def test_tensors_that_get_nothing_are_named_once_with_the_kappa_they_need() -> None:
    F = {f"t{i}": torch.rand(10 + i) for i in range(5)} | {"big": torch.rand(1000), "empty": torch.empty(0)}
    with pytest.warns(UserWarning, match="selects no entry in 5") as caught:
        mask = rank(F, 0.01).mask(0.01)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert all(f"t{i} ({10 + i} entries, needs" in text for i in range(5)) and "empty" not in text
    assert mask.counts() == {f"t{i}": 0 for i in range(5)} | {"big": 10, "empty": 0}
    for name, kappa in re.findall(r"(t\d) \(\d+ entries, needs kappa >= ([\d.e-]+)\)", text):
        assert top_fraction({name: F[name]}, float(kappa)).nnz == 1


def test_tensors_that_differ_only_in_the_layer_share_a_mention() -> None:
    F = {f"layers.{i}.q.weight": torch.rand(10) for i in range(3)} | {"layers.0.o.weight": torch.rand(9)}
    with pytest.warns(
        UserWarning, match=r"3 x layers\.\*\.q\.weight \(10 entries.*; layers\.\*\.o\.weight \(9 "
    ):
        rank(F, 0.01).mask(0.01)


def test_no_warning_when_a_group_gets_entries_but_one_of_its_tensors_does_not() -> None:
    F = {"layers.0.a": torch.zeros(50), "layers.0.b": torch.ones(50)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rank(F, 0.1, "layer").mask(0.1).counts() == {"layers.0.a": 0, "layers.0.b": 10}


def test_the_source_of_the_values_is_remembered() -> None:
    class Fisher(dict):
        definition: ClassVar = {"labels": "empirical"}
        num_samples = 7

    (step,) = rank(Fisher(fisher()), 0.1).mask(0.05).parents
    assert step["definition"] == {"labels": "empirical"} and step["num_samples"] == 7
    assert (step["operation"], step["kappa"], step["compat"]) == ("top_fraction", 0.05, None)
