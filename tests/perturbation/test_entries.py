"""Undo looks first: what somebody else changed is named and kept, everything else is restored to the bit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tomfisher.finetune import Delta, apply
from tomfisher.masks import SparseMask
from tomfisher.perturbation import perturb

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
FILLS = ["mean", "zero", 0.25, "noise", "scale:2"]


def model_of(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(6, 4, bias=False)).to(dtype)


def mask_of(model: nn.Module) -> SparseMask:
    named = dict(model.named_parameters())
    return SparseMask(
        {name: torch.tensor([1, 4, 9, 17]) for name in named}, {n: tuple(p.shape) for n, p in named.items()}
    )


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone().view(BITS[p.element_size()]) for n, p in model.named_parameters()}


def by_data(weight: Tensor) -> None:
    weight.data.view(-1)[4] = 7.0


def by_no_grad(weight: Tensor) -> None:
    with torch.no_grad():
        weight.view(-1)[4] = 7.0


def by_numpy(weight: Tensor) -> None:
    weight.detach().view(torch.int16 if weight.element_size() == 2 else torch.int32).numpy().ravel()[4] = 1


def by_set_data_of_a_view(weight: Tensor) -> None:
    torch.as_strided(weight.detach(), (1,), (1,), 4).fill_(math.nan)


WRITES = [by_data, by_no_grad, by_numpy, by_set_data_of_a_view]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_changed_entry_is_named_and_kept_and_the_rest_restored(
    dtype: torch.dtype, fill: str | float, write: Callable[[Tensor], None]
) -> None:
    model = model_of(dtype)
    before = bits(model)
    with (
        pytest.raises(RuntimeError, match=r"changed 1 of its entries since .*1\.weight at 4\)"),
        perturb(model, mask_of(model), fill=fill) as perturbation,
    ):
        write(model[1].weight)
        changed = bits(model)["1.weight"].view(-1)[4].clone()
    now = bits(model)
    assert torch.equal(now["0.weight"], before["0.weight"])
    assert now["1.weight"].view(-1)[4] == changed
    now["1.weight"].view(-1)[4] = before["1.weight"].view(-1)[4]
    assert torch.equal(now["1.weight"], before["1.weight"]) and not perturbation.applied


@pytest.mark.parametrize("fill", FILLS)
def test_a_change_elsewhere_is_nobodys_business(fill: str | float) -> None:
    model = model_of()
    before = bits(model)
    with perturb(model, mask_of(model), fill=fill):
        model[1].weight.data.view(-1)[5] = 7.0
    now = bits(model)
    assert (now["1.weight"] != before["1.weight"]).nonzero().tolist() == [[0, 5]]


def test_the_sign_of_zero_and_the_payload_of_nan_count() -> None:
    model = model_of()
    with (
        pytest.raises(RuntimeError, match="changed 1 of its entries"),
        perturb(model, mask_of(model), fill="zero"),
    ):
        model[0].weight.data.view(-1)[9] = -0.0


def test_weights_that_were_loaded_again_meanwhile_are_said() -> None:
    model = model_of()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = bits(model)
    with (
        pytest.raises(RuntimeError, match=r"changed 8 of its entries .* and|changed 8 of its entries"),
        perturb(model, mask_of(model), fill="zero"),
    ):
        model.load_state_dict(state)
    assert all(torch.equal(bits(model)[name], value) for name, value in before.items())


def test_an_error_of_the_block_is_not_hidden_behind_it() -> None:
    model = model_of()
    with (
        pytest.warns(UserWarning, match="somebody else changed 1"),
        pytest.raises(KeyError),
        perturb(model, mask_of(model)),
    ):
        by_data(model[0].weight)
        raise KeyError("theirs")


def test_nested_perturbations_are_no_strangers() -> None:
    model = model_of()
    before, mask = bits(model), mask_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with perturb(model, mask, fill="zero"), perturb(model, mask, fill="noise"), perturb(model, mask):
            pass
    assert all(torch.equal(bits(model)[name], value) for name, value in before.items())


def test_the_sums_of_a_changed_tensor_are_read_again() -> None:
    model = model_of()
    mask = mask_of(model)
    perturbation = perturb(model, mask)
    with pytest.raises(RuntimeError, match="somebody else changed"), perturbation:
        by_data(model[0].weight)
    with perturbation:
        again = bits(model)
    with perturb(model, mask):
        assert all(torch.equal(bits(model)[name], value) for name, value in again.items())


def test_an_optimiser_step_inside_the_block_is_said() -> None:
    model = model_of()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(RuntimeError, match="somebody else changed 8"),
        perturb(model, mask_of(model), fill="zero"),
    ):
        model(torch.ones(2, 8)).square().sum().backward()
        optimiser.step()


@pytest.mark.parametrize("failing", [False, True])
def test_the_undo_of_a_training_looks_too(failing: bool) -> None:
    model = model_of()
    before = bits(model)
    name, shape = "0.weight", (6, 8)
    index = torch.tensor([1, 4, 9])
    old = model[0].weight.detach().view(-1)[index].clone()
    delta = Delta({name: shape}, {name: index}, {name: old}, {name: old + 1})
    said = (
        pytest.warns(UserWarning, match="changed 1")
        if failing
        else pytest.raises(RuntimeError, match=r"changed 1 of its entries since .*0\.weight at 4\)")
    )
    with said, pytest.raises(KeyError) if failing else warnings.catch_warnings(), apply(model, delta):
        by_data(model[0].weight)
        if failing:
            raise KeyError
    now = bits(model)[name]
    assert model[0].weight.view(-1)[4] == 7.0
    now.view(-1)[4] = before[name].view(-1)[4]
    assert torch.equal(now, before[name])


@pytest.mark.parametrize("step", ["check_means", "round_once"])
def test_an_error_after_a_mean_was_written_is_undone(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> Tensor:
        raise MemoryError

    model = model_of()
    before = bits(model)
    perturbation = perturb(model, mask_of(model))
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(f"tomfisher.perturbation.entries.{step}", out_of_memory)
        perturbation.apply()
    assert not perturbation.applied
    assert all(torch.equal(bits(model)[name], value) for name, value in before.items())


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_where_what_was_written_cannot_be_kept_nothing_stays_written(
    fill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object) -> Tensor:
        raise MemoryError

    model = model_of()
    before = bits(model)
    perturbation = perturb(model, mask_of(model), fill=fill)
    monkeypatch.setattr(torch, "cat", out_of_memory)
    monkeypatch.setattr("tomfisher.perturbation.entries.round_once", out_of_memory)
    with pytest.raises(MemoryError):
        perturbation.apply()
    assert not perturbation.applied
    assert all(torch.equal(bits(model)[name], value) for name, value in before.items())


def test_an_entry_of_a_transposed_weight_is_named_as_the_mask_counts() -> None:
    model = nn.Linear(8, 16)
    model.weight = nn.Parameter(torch.randn(8, 16).t())
    mask = SparseMask({"weight": torch.tensor([1, 4, 9])}, {"weight": (16, 8)})
    with pytest.raises(RuntimeError, match=r"weight at 4\)"), perturb(model, mask), torch.no_grad():
        model.weight[0, 4] = 7.0
    assert model.weight[0, 4] == 7.0
