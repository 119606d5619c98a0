from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

import tomfisher
from tomfisher.masks import SparseMask
from tomfisher.ops import dispatch, scatter_
from tomfisher.perturbation import WeightSums, perturb
from tomfisher.perturbation.entries import Entries

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def small_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 4, bias=False))
    return model.to(dtype)


def mask_of(model: nn.Module, per_tensor: int = 3, seed: int = 0) -> SparseMask:
    generator = torch.Generator().manual_seed(seed)
    named = dict(model.named_parameters())
    indices = {
        n: torch.randperm(p.numel(), generator=generator)[:per_tensor].sort().values for n, p in named.items()
    }
    return SparseMask(indices, {n: tuple(p.shape) for n, p in named.items()})


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone().view(BITS[p.element_size()]) for n, p in model.named_parameters()}


def same_bits(model: nn.Module, saved: dict[str, torch.Tensor]) -> bool:
    now = snapshot(model)
    return now.keys() == saved.keys() and all(torch.equal(now[n], saved[n]) for n in saved)


def test_is_public() -> None:
    assert tomfisher.perturb is perturb


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fill", ["mean", "zero", 0.25, "noise", ("scale", 1.5), "scale:-2"])
def test_writes_only_the_masked_entries_and_undoes_to_the_bit(dtype: torch.dtype, fill) -> None:
    model = small_model(dtype)
    mask, saved = mask_of(model), snapshot(model)
    perturbation = perturb(model, mask, fill=fill)
    assert same_bits(model, saved) and not perturbation.applied  # nothing yet
    with perturbation as entered:
        assert entered is perturbation and perturbation.applied
        assert perturbation.nnz == mask.nnz == 3 * len(mask)
        for name, weight in model.named_parameters():
            changed = weight.detach().view(BITS[dtype.itemsize]) != saved[name]
            assert not (changed & ~mask.dense(name)).any()
        assert not same_bits(model, saved)
    assert same_bits(model, saved) and not perturbation.applied


@pytest.mark.parametrize("dtype", DTYPES)
def test_undo_restores_nan_payloads_infinities_and_negative_zero(dtype: torch.dtype) -> None:
    model = small_model(dtype)
    weight = dict(model.named_parameters())["0.weight"]
    patterns = torch.tensor([-1, -3, 1], dtype=BITS[dtype.itemsize]).view(
        dtype
    )  # two NaN payloads, a denormal
    with torch.no_grad():
        weight.view(-1)[:3] = patterns
        weight.view(-1)[3:6] = torch.tensor([math.inf, -math.inf, -0.0], dtype=dtype)
        # assignment of NaN must have kept the payloads for this test to mean anything
        assert torch.equal(
            weight.view(-1)[:3].view(BITS[dtype.itemsize]), patterns.view(BITS[dtype.itemsize])
        )
    saved = snapshot(model)
    mask = SparseMask({"0.weight": torch.arange(6)}, {"0.weight": (6, 8)})
    for fill in ("mean", "zero"):
        with perturb(model, mask, fill=fill):
            assert torch.isfinite(weight).all()
        assert same_bits(model, saved)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_undone_after_any_exception_inside(error: type[BaseException]) -> None:
    model = small_model()
    saved = snapshot(model)
    with pytest.raises(error), perturb(model, mask_of(model), fill="zero"):
        assert not same_bits(model, saved)
        raise error
    assert same_bits(model, saved)


def test_explicit_apply_and_undo_and_again() -> None:
    model = small_model()
    saved = snapshot(model)
    perturbation = perturb(model, mask_of(model), fill="zero").apply()
    perturbed = snapshot(model)
    assert perturbation.applied and not same_bits(model, saved)
    with pytest.raises(RuntimeError, match=r"cannot be applied twice\. Call undo"):
        perturbation.apply()
    assert same_bits(model, perturbed)
    perturbation.undo()
    assert same_bits(model, saved)
    with pytest.raises(RuntimeError, match=r"cannot be undone: apply\(\) it first"):
        perturbation.undo()
    with perturbation:
        assert same_bits(model, perturbed)
        perturbation.undo()  # by hand inside the block: the exit has nothing left to do
    assert same_bits(model, saved)


def test_the_model_computes_with_the_perturbed_weights_and_still_trains() -> None:
    model = small_model()
    x = torch.randn(5, 8)
    before = model(x)
    with perturb(model, mask_of(model), fill=3.0):
        assert not torch.equal(model(x), before)
        model(x).sum().backward()
    assert torch.equal(model(x), before)
    assert all(p.requires_grad and p.is_leaf and p.grad is not None for p in model.parameters())


def test_a_backward_over_overwritten_weights_is_refused_by_autograd() -> None:
    model = small_model()
    loss = model(torch.randn(2, 8)).sum()
    with perturb(model, mask_of(model), fill="zero"), pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


@pytest.mark.parametrize("fill", ["mean", "zero"])
@pytest.mark.parametrize("sums", [None, WeightSums()])
def test_inference_tensors_which_have_no_version(fill: str, sums: WeightSums | None) -> None:
    with torch.inference_mode():
        model = small_model()
    saved, perturbation = snapshot(model), perturb(model, mask_of(model), fill=fill, sums=sums)
    for _ in range(2):
        with perturbation:
            assert not same_bits(model, saved)
        assert same_bits(model, saved)


def test_nested_perturbations_of_overlapping_entries() -> None:
    model = small_model()
    states = [snapshot(model)]
    outer, middle, inner = (perturb(model, mask_of(model, 4, seed), fill=float(seed)) for seed in (1, 2, 3))
    for each in (outer, middle, inner):
        each.apply()
        states.append(snapshot(model))
    for early in (outer, middle):
        with pytest.raises(RuntimeError, match=r"fill='[12]'.*undo Perturbation\(fill='3'.* first"):
            early.undo()
        assert same_bits(model, states[-1]) and early.applied
    for each in (inner, middle, outer):
        states.pop()
        each.undo()
        assert same_bits(model, states[-1])


def test_perturbations_of_different_tensors_are_independent() -> None:
    model = small_model()
    saved, mask = snapshot(model), mask_of(model)
    first = perturb(model, mask.restrict("0.weight"), fill="zero").apply()
    second = perturb(model, mask.restrict("2.weight"), fill="zero").apply()
    first.undo()
    second.undo()
    assert same_bits(model, saved)


def test_a_dropped_perturbation_is_permanent_and_blocks_nobody() -> None:
    model = small_model()
    below = perturb(model, mask_of(model, seed=1), fill="zero").apply()
    perturb(model, mask_of(model, seed=2), fill=5.0).apply()
    gc.collect()
    with pytest.raises(RuntimeError, match="somebody else changed"):  # where the two overlap
        below.undo()
    assert not below.applied
    kept = mask_of(model, seed=2)["0.weight"]
    assert (model[0].weight.detach().view(-1)[kept] == 5.0).all()


def test_an_error_in_the_middle_of_apply_restores_everything(monkeypatch) -> None:
    model = small_model()
    saved, mask = snapshot(model), mask_of(model)
    real = Entries._put
    calls = []

    def write_half_then_fail(entries: Entries, values) -> None:
        parts = entries.split(values)
        calls.append(len(parts))
        if len(calls) == 1:
            half = entries.targets[:2]
            scatter_([t.view for t in half], [t.index for t in half], parts[:2])
            raise MemoryError("boom")
        real(entries, values)

    monkeypatch.setattr(Entries, "_put", write_half_then_fail)
    perturbation = perturb(model, mask, fill="zero")
    with pytest.raises(MemoryError, match="boom"):
        perturbation.apply()
    assert calls == [5, 5]
    assert same_bits(model, saved) and not perturbation.applied
    with perturbation:
        assert not same_bits(model, saved)
    assert same_bits(model, saved)


@pytest.mark.parametrize("step", ["version_of", "guard.push"])
@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_an_error_after_the_last_write_restores_everything(monkeypatch, fill: str, step: str) -> None:
    def out_of_memory(*_: object) -> None:
        raise MemoryError

    model = small_model()
    saved, perturbation = snapshot(model), perturb(model, mask_of(model), fill=fill)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(f"tomfisher.perturbation.session.{step}", out_of_memory)
        perturbation.apply()
    assert same_bits(model, saved) and not perturbation.applied
    with perturb(model, mask_of(model, seed=1), fill=fill), perturbation:  # neither is in the other's way
        assert not same_bits(model, saved)
    assert same_bits(model, saved)


@pytest.mark.parametrize("impl", ["auto", "mine"])
def test_a_backend_of_the_list_operations_alone_runs_and_is_recorded(monkeypatch, impl: str) -> None:
    ran: list[str] = []

    def counted(op: str) -> Callable[..., object]:
        return lambda *given: (ran.append(op), dispatch._table[op, "reference"](*given))[1]

    operations = ["weight_sums", "masked_fill_mean_", "scatter_"]
    for op in operations:
        monkeypatch.setitem(dispatch._table, (op, "mine"), counted(op))
    monkeypatch.setattr(dispatch, "IMPLEMENTATIONS", (*dispatch.IMPLEMENTATIONS, "mine"))
    monkeypatch.setitem(dispatch._PREFERRED, "cpu", ("mine", "reference"))
    model = small_model()
    saved, perturbation = snapshot(model), perturb(model, mask_of(model), impl=impl)
    assert perturbation.implementations == {f"{op}@cpu": "mine" for op in operations}
    with perturbation:
        assert not same_bits(model, saved)
    assert same_bits(model, saved) and ran == operations
    assert perturb(model, mask_of(model), fill="zero", impl=impl).implementations == {"scatter_@cpu": "mine"}


def test_moving_the_model_while_perturbed_is_noticed() -> None:
    model = small_model()
    perturbation = perturb(model, mask_of(model), fill="zero").apply()
    model.to(torch.float16)
    with pytest.raises(RuntimeError, match=r"memory of 0\.weight.* was replaced"):
        perturbation.undo()
    assert perturbation.applied


def test_a_mapping_of_tensors_is_a_target_too() -> None:
    tensors = {"w": torch.arange(6.0).view(2, 3), "other": torch.ones(2)}
    mask = SparseMask({"w": torch.tensor([0, 5])}, {"w": (2, 3)})
    with perturb(tensors, mask, fill="zero") as perturbation:
        assert tensors["w"].tolist() == [[0, 1, 2], [3, 4, 0]] and perturbation.nnz == 2
    assert tensors["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    model = small_model()
    saved = snapshot(model)
    with perturb(model.state_dict(), mask_of(model), fill="zero"):
        assert not same_bits(model, saved)
    assert same_bits(model, saved)


def test_an_empty_mask_does_nothing() -> None:
    model = small_model()
    saved = snapshot(model)
    with perturb(model, SparseMask({}, {"0.weight": (6, 8)})) as perturbation:
        assert perturbation.nnz == 0 and perturbation.applied
        assert same_bits(model, saved)
    assert same_bits(model, saved)


def test_arguments_are_checked_when_the_perturbation_is_made() -> None:
    model = small_model()
    mask = mask_of(model)
    with pytest.raises(TypeError, match="mask must be a SparseMask, got dict"):
        perturb(model, dict(mask))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="compat must be None or 'authors'"):
        perturb(model, mask, compat="paper")
    with pytest.raises(ValueError, match="compat='authors' is a way to take the mean"):
        perturb(model, mask, fill="zero", compat="authors")
    with pytest.raises(RuntimeError, match="impl='triton' needs"):  # CUDA tensors, or triton at all
        perturb(model, mask, impl="triton").apply()
    with pytest.raises(ValueError, match="impl must be"):
        perturb(model, mask, impl="fast")  # type: ignore[arg-type]


def test_apply_and_undo_are_cheap_on_many_tensors() -> None:
    # 210 tensors as in SmolLM2-135M, at a tenth of its size; processor time of one thread, so load does not matter
    tensors = {f"layers.{i}.w": torch.randn(500, 100) for i in range(210)}
    mask = SparseMask({n: torch.arange(0, 50_000, 1000) for n in tensors}, {n: (500, 100) for n in tensors})
    perturbation = perturb(tensors, mask)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = time.process_time()
        with perturbation:
            pass
        assert time.process_time() - start < 1.0  # about 0.05
    finally:
        torch.set_num_threads(threads)
