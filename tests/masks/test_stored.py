"""Masks from Fisher stores that stay on disk: the same as from memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tomfisher import FisherDiagonal
from tomfisher.fisher import shards
from tomfisher.masks import difference_masks, rank, top_fraction

SHAPES = {
    "model.layers.0.q.weight": (40, 30),
    "model.layers.0.k.weight": (7, 30),
    "model.layers.1.q.weight": (40, 30),
    "embed.weight": (1100, 90),
}


def fisher(seed: int, quantum: float = 0.0) -> FisherDiagonal:
    g = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(shape, generator=g).square() for name, shape in SHAPES.items()}
    if quantum:
        values = {name: (value / quantum).round() * quantum for name, value in values.items()}
    return FisherDiagonal(values, 3, 30, {}, {"definition": {"labels": "empirical"}})


def on_disk(F: FisherDiagonal, path: Path) -> FisherDiagonal:
    F.save(path)
    return FisherDiagonal.load(path)


@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
@pytest.mark.parametrize("quantum", [0.0, 0.5])
def test_a_store_gives_the_masks_of_its_values(tmp_path: Path, scope, quantum: float) -> None:
    F = fisher(0, quantum)
    stored = on_disk(F, tmp_path / "F")
    for kappa in (0.005, 0.02, 0.3):
        assert top_fraction(stored, kappa, scope) == top_fraction(F, kappa, scope)
    expected, found = rank(F, 0.1, scope), rank(stored, 0.1, scope)
    for a, b in zip(expected.lists, found.lists, strict=True):
        assert torch.equal(a.values, b.values) and torch.equal(a.positions, b.positions)


def test_the_paper_rule_works_on_stores(tmp_path: Path) -> None:
    F = fisher(1, 0.25)
    assert top_fraction(on_disk(F, tmp_path / "F"), 0.05, compat="authors") == top_fraction(
        F, 0.05, compat="authors"
    )


def test_tensors_of_a_store_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = on_disk(fisher(2), tmp_path / "F")

    def forbidden(self: FisherDiagonal, name: str) -> Tensor:
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(FisherDiagonal, "__getitem__", forbidden)
    for scope in ("tensor", "layer", "model"):
        assert rank(stored, 0.01, scope).mask(0.01).nnz > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
def test_differences_of_two_stores_at_every_kappa(tmp_path: Path, scope) -> None:
    task, control = fisher(3, 0.25), fisher(4, 0.25)
    kappas = [0.01, 0.1, 0.03]
    found = difference_masks(on_disk(task, tmp_path / "t"), on_disk(control, tmp_path / "c"), kappas, scope)
    assert list(found) == kappas
    for kappa in kappas:
        assert found[kappa] == top_fraction(task, kappa, scope) - top_fraction(control, kappa, scope)
        assert 0 < found[kappa].nnz < top_fraction(task, kappa, scope).nnz


SCOPES = ("tensor", *(pytest.param(scope, marks=pytest.mark.slow) for scope in ("layer", "model")))


@pytest.mark.parametrize("scope", SCOPES)
def test_differences_of_two_stores_take_memory_for_the_masks_alone(
    tmp_path: Path, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 40 * 2**20)  # two tensors a shard
    shape, count = (2048, 2048), 8
    for seed, name in enumerate(("t", "c")):
        generator = torch.Generator().manual_seed(seed)
        F = {f"layers.{i}.weight": torch.rand(shape, generator=generator) for i in range(count)}
        FisherDiagonal(F, num_samples=1, num_tokens=1, methods={}).save(tmp_path / name)
    code = (
        "import resource, torch; from tomfisher import FisherDiagonal; from tomfisher.masks import difference_masks\n"
        "difference_masks({'a': torch.rand(1000)}, {'a': torch.rand(1000)}, [0.01])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "stores = [FisherDiagonal.load(name) for name in ('t', 'c')]\n"
        "print(sum(mask.nnz for mask in difference_masks(*stores, [1e-5, 1e-4], '"
        f"{scope}').values()))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    nnz, kilobytes = map(int, done.stdout.split())
    assert nnz > 0.99 * count * (41 + 419)
    unit = 1 if sys.platform == "darwin" else 1024
    assert kilobytes * unit <= 64 * 2**20  # the two stores hold 256 MiB


def test_differences_of_unlike_things_are_refused() -> None:
    task = {"a": torch.rand(100), "b": torch.rand(50)}
    with pytest.raises(ValueError, match=r"only one holds \['b'\]"):
        difference_masks(task, {"a": torch.rand(100)}, [0.1])
    with pytest.raises(ValueError, match=r"these differ: \['b'\]"):
        difference_masks(task, {"a": torch.rand(100), "b": torch.rand(5, 10)}, [0.1])
    with pytest.raises(ValueError, match="at least one fraction"):
        difference_masks(task, task, [])
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        difference_masks(task, task, [0.1, 1.0])


def test_damage_after_opening_is_said_with_the_tensor(tmp_path: Path) -> None:
    stored = on_disk(fisher(5), tmp_path / "F")
    file = tmp_path / "F" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        rank(stored, 0.1)
    file.write_bytes(whole)
    bad = bytearray(whole)
    bad[-4:] = torch.tensor([torch.nan]).numpy().tobytes()
    file.write_bytes(bad)
    with pytest.raises(
        ValueError, match=r"Tensor '[\w.]+' cannot be ranked: .*NaN or infinity at flat index"
    ):
        rank(stored, 0.1)


def test_spans_exist_for_stores_alone(tmp_path: Path) -> None:
    F = fisher(6)
    assert F.span("embed.weight") is None
    span = on_disk(F, tmp_path / "F").span("embed.weight")
    assert span is not None and span.shape == (1100, 90) and span.dtype == torch.float32
    with pytest.raises(KeyError):
        FisherDiagonal.load(tmp_path / "F").span("nothing")
