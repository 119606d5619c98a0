"""Which way is taken: by arithmetic on sizes, and said in words where the code cannot do it yet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tomfisher.benchmarks.models import without_weights
from tomfisher.fisher import ways
from tomfisher.fisher.sizes import Sizes, sizes_of
from tomfisher.fisher.way import Way, Work
from tomfisher.fisher.ways import FEATURES, choose_way, lacking
from tomfisher.runtime.gpus import named
from tomfisher.runtime.machine import Machine

H100 = Machine(memory=80 * 10**9, gpu=named("h100"))
WORK = Work(samples=100, length=128)


@pytest.fixture(scope="module")
def models() -> dict[str, Sizes]:
    return {name: sizes_of(without_weights(name)) for name in ("llama3-8b", "llama3-70b", "deepseek-v3")}


@pytest.mark.parametrize(
    ("model", "machine", "way"),
    [
        ("llama3-8b", H100, Way()),
        ("llama3-8b", replace(H100, memory=24 * 10**9), Way(stream=True)),
        ("llama3-8b", replace(H100, devices=8), Way(samples=8)),
        ("llama3-70b", H100, Way(stream=True)),
        ("llama3-70b", replace(H100, devices=8), Way(tensor=8)),
        ("llama3-70b", replace(H100, devices=8, link=25e9), Way(stream=True, samples=8)),
        ("llama3-70b", replace(H100, devices=8, nodes=4), Way(samples=32, shards=8)),
        ("deepseek-v3", replace(H100, devices=8), Way(stream=True, samples=8, experts=8)),
        ("deepseek-v3", replace(H100, devices=8, nodes=4), Way(stream=True, samples=32, experts=8)),
        ("llama3-8b", Machine(memory=16 * 10**9), Way(stream=True)),
        ("llama3-8b", Machine(memory=4 * 10**9), Way(stream=True, boundary="disk")),
        ("llama3-8b", Machine(memory=int(2.8e9)), Way(stream=True, boundary="disk", prefetch=False)),
        ("llama3-8b", Machine(memory=64 * 10**9), Way()),
    ],
)
def test_the_way_follows_from_model_and_machine(models, model, machine, way):
    best = choose_way(models[model], machine, WORK).best
    assert best is not None and best.way == way


def test_what_does_not_fit_says_by_how_much(models):
    choice = choose_way(models["deepseek-v3"], H100, WORK)
    assert choice.best is None and choice.today is None
    assert choice.candidates[0].obstacles[0].startswith("a device would hold 4")
    full = choose_way(models["llama3-8b"], replace(H100, disk=10**9), WORK)
    assert full.best is None
    assert full.candidates[0].obstacles == ("the disk would hold 27.9 GB and has 1.0 free",)
    crowded = choose_way(models["llama3-8b"], replace(H100, devices=8, host_memory=100 * 10**9), WORK)
    (obstacle,) = crowded.candidates[0].obstacles  # eight ranks read the model into main memory
    assert obstacle.startswith("a node's memory would hold 128.")


def test_today_is_the_first_way_that_the_code_can_do(models, monkeypatch):
    monkeypatch.setattr(ways, "BUILT", frozenset())
    choice = choose_way(models["llama3-8b"], replace(H100, devices=8), WORK)
    assert choice.best is not None and choice.best.way == Way(samples=8)
    assert choice.today is not None and choice.today.way == Way()
    assert choose_way(models["llama3-70b"], H100, WORK).today is None
    monkeypatch.setattr(ways, "BUILT", frozenset({"stream on a GPU"}))
    choice = choose_way(models["llama3-70b"], H100, WORK)
    assert choice.today == choice.best


def test_each_feature_is_asked_for_by_the_ways_that_need_it(monkeypatch):
    monkeypatch.setattr(ways, "BUILT", frozenset())
    assert lacking(Way(), on_gpu=True) == ()
    assert lacking(Way(stream=True), on_gpu=False) == (FEATURES["stream"],)
    everything = Way(stream=True, samples=8, shards=2, tensor=2, experts=2, prefetch=False)
    assert set(lacking(everything, on_gpu=True)) == {
        text for name, text in FEATURES.items() if name not in ("stream", "shards")
    }
    assert lacking(Way(samples=8, shards=8), on_gpu=False) == (FEATURES["samples"], FEATURES["shards"])
    monkeypatch.setattr(ways, "BUILT", frozenset(FEATURES))
    assert lacking(everything, on_gpu=True) == ()


def test_a_batch_never_costs_the_way(models):
    """A GPU's batch grows into what is free; a way fits if one sample does."""
    found = choose_way(models["llama3-8b"], H100, replace(WORK, samples=10_000)).best
    assert found is not None and not found.way.stream
    assert found.footprint.least < found.footprint.device.total <= H100.memory
