from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from tomfisher.masks import SparseMask
from tomfisher.perturbation import Perturbation, WeightSums, perturb, session
from tomfisher.perturbation.entries import Entries


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3, bias=False))


def model_of() -> nn.Module:
    return nn.Sequential(Block(), nn.Linear(3, 2))


def mask_of(model: nn.Module, index: tuple[int, ...] = (0, 1)) -> SparseMask:
    named = dict(model.named_parameters())
    chosen = {n: torch.tensor(index) for n, p in named.items() if p.numel() > 2}
    return SparseMask(chosen, {n: tuple(named[n].shape) for n in chosen})


def bits(model: nn.Module) -> list[list[int]]:
    return [p.detach().view(torch.int32).flatten().tolist() for p in model.parameters()]


def fresh(model: nn.Module, mask: SparseMask) -> list[list[int]]:
    """The model under a perturbation that has seen nothing before."""
    with perturb(model, mask):
        return bits(model)


@pytest.fixture
def looked(monkeypatch) -> list[Entries]:
    """All entries that a perturbation looked for."""
    made: list[Entries] = []

    def counted(*arguments) -> Entries:
        made.append(Entries(*arguments))
        return made[-1]

    monkeypatch.setattr(session, "Entries", counted)
    return made


def used_twice(model: nn.Module) -> Perturbation:
    """A perturbation with everything prepared."""
    perturbation = perturb(model, mask_of(model))
    for _ in range(2):
        with perturbation:
            pass
    return perturbation


def test_entries_are_looked_for_once_while_the_weights_are_the_same(looked: list[Entries]) -> None:
    model = model_of()
    saved, perturbation = bits(model), used_twice(model)
    assert len(looked) == 1
    expected = fresh(model, perturbation.mask)
    looked.clear()
    for _ in range(3):
        with perturbation:
            assert bits(model) == expected != saved
        assert bits(model) == saved
    assert looked == []


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].inner[0].weight.mul_(3)


def parameter(model: nn.Module) -> None:
    model[0].inner[0].weight = nn.Parameter(torch.randn(4, 5))


def module(model: nn.Module) -> None:
    model[0].inner[1] = nn.Linear(4, 3, bias=False)


def parent(model: nn.Module) -> None:
    model[0] = Block()


def data(model: nn.Module) -> None:
    model[0].inner[0].weight.data = torch.randn(4, 5)


def layout(model: nn.Module) -> None:
    model[0].inner[0].weight.data = torch.randn(5, 4).t()


@pytest.mark.parametrize("change", [in_place, parameter, module, parent, data, layout])
def test_a_model_that_was_changed_in_between_is_looked_at_again(change) -> None:
    model = model_of()
    perturbation = used_twice(model)
    change(model)
    saved, expected = bits(model), fresh(model, perturbation.mask)
    for _ in range(2):
        with perturbation:
            assert bits(model) == expected != saved
        assert bits(model) == saved


def test_a_converted_model_is_filled_in_its_new_dtype() -> None:
    model = model_of()
    perturbation = used_twice(model)
    model.to(torch.float64)
    saved, expected = bits(model), fresh(model, perturbation.mask)
    with perturbation:
        assert bits(model) == expected != saved
    assert bits(model) == saved


@pytest.mark.parametrize("change", [parameter, module, parent, data])
def test_memory_replaced_while_perturbed_is_noticed_every_time(change) -> None:
    model = model_of()
    perturbation = used_twice(model).apply()
    change(model)
    saved = bits(model)
    with pytest.raises(RuntimeError, match=r"memory of 0\.inner\..* was replaced"):
        perturbation.undo()
    assert perturbation.applied and bits(model) == saved


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_a_dtype_or_layout_changed_while_perturbed_is_refused_and_can_be_changed_back(fill: str) -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.randn(4, 4))})
    weight, saved = model["w"], bits(model)
    perturbation = perturb(model, SparseMask({"w": torch.tensor([1])}, {"w": (4, 4)}), fill=fill).apply()
    own = weight.data
    weight.data = own.t()
    with pytest.raises(RuntimeError, match=r"w was given another dtype or layout"):
        perturbation.undo()
    weight.data = own
    perturbation.undo()
    assert bits(model) == saved


def test_replaced_memory_is_not_kept_alive() -> None:
    model = model_of()
    perturbation = used_twice(model)
    storages = [StorageWeakRef(p.untyped_storage()) for p in model.parameters()]
    model.to(torch.float64)
    gc.collect()
    assert all(storage.expired() for storage in storages) and not perturbation.applied


def test_memory_freed_and_given_out_again_is_not_mistaken() -> None:
    model, sums = nn.ParameterDict({"w": nn.Parameter(torch.randn(64, 64))}), WeightSums()
    mask = SparseMask({"w": torch.tensor([1])}, {"w": (64, 64)})
    perturbation = perturb(model, mask, sums=sums)
    for _ in range(2):
        with perturbation:
            pass
    for value in range(20):  # the allocator gives the same address back sooner or later
        model["w"].data = torch.empty(0)
        model["w"].data = torch.full((64, 64), float(value))
        with perturbation:
            assert model["w"][0, 1] == value


def test_another_write_between_fill_and_undo_is_noticed_by_the_same_one() -> None:
    model = model_of()
    perturbation = used_twice(model)
    with pytest.raises(RuntimeError, match="somebody else changed"), perturbation, torch.no_grad():
        model[0].inner[0].weight.mul_(3)
    expected = fresh(model, perturbation.mask)
    with perturbation:
        assert bits(model) == expected


def test_prepared_perturbations_that_share_sums_and_nest() -> None:
    model, sums = model_of(), WeightSums()
    saved = bits(model)
    outer, inner = (perturb(model, mask_of(model, index), sums=sums) for index in ((0, 1), (1, 2)))
    with perturb(model, outer.mask):
        alone, expected = bits(model), fresh(model, inner.mask)
    for _ in range(3):
        with outer:
            assert bits(model) == alone
            with inner:
                assert bits(model) == expected
                with pytest.raises(RuntimeError, match=r"undo Perturbation.* first"):
                    outer.undo()
            assert bits(model) == alone
        assert bits(model) == saved
        sums.clear()


def test_names_that_are_not_the_modules_are_resolved_every_time() -> None:
    class Renaming(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = nn.Linear(3, 2)

        def named_parameters(self, *arguments, **options):
            for name, weight in super().named_parameters(*arguments, **options):
                yield name.removeprefix("wrapped."), weight

    model = Renaming()
    mask, saved = SparseMask({"weight": torch.tensor([0, 4])}, {"weight": (2, 3)}), bits(model)
    perturbation = perturb(model, mask)
    for _ in range(3):
        with perturbation:
            assert bits(model) != saved
        assert bits(model) == saved


def test_a_mapping_is_followed_by_name() -> None:
    tensors = {"w": torch.arange(4.0)}
    perturbation = perturb(tensors, SparseMask({"w": torch.tensor([3])}, {"w": (4,)}))
    for _ in range(2):
        with perturbation:
            assert tensors["w"][3] == 1.0
    tensors["w"] = torch.tensor([5.0, 5.0, 5.0, 9.0])
    with perturbation:
        assert tensors["w"].tolist() == [5.0] * 4
    del tensors["w"]
    with pytest.raises(ValueError, match="not there"):
        perturbation.apply()


def test_tied_weights_are_filled_again_and_again() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight
    named = dict(model.named_parameters(remove_duplicate=False))
    mask = SparseMask(
        {"a.weight": torch.tensor([0]), "b.weight": torch.tensor([4])}, {n: (3, 3) for n in named}
    )
    saved, perturbation = bits(model), perturb(model, mask)
    for _ in range(3):
        with perturbation:
            first = model["a"].weight.view(-1)
            assert first[0] == first[4]
        assert bits(model) == saved
    model["b"].weight = nn.Parameter(torch.randn(3, 3))  # untied: each has its own mean now
    untied = bits(model)
    with perturbation:
        assert model["a"].weight.view(-1)[4].item() == pytest.approx(
            torch.tensor(untied[0], dtype=torch.int32).view(torch.float32)[4].item()
        )
    assert bits(model) == untied
