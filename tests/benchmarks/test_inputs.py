"""What the benchmarks run on, and the floors they compare with."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import tomfisher
from tomfisher.benchmarks import models, peers, topk_data
from tomfisher.benchmarks.bench_fisher import flop
from tomfisher.benchmarks.nth_element import kth_largest
from tomfisher.ops.spans import read_spans
from tomfisher.runtime import gpus
from tomfisher.sample import Sample


def test_shapes_are_those_of_the_named_models():
    shapes = models.decoder_shapes("llama3-8b")
    assert len(shapes) == 224 and sum(a * b for a, b in shapes) == 6_979_321_856
    layers = {layer.name: (layer.d_out, layer.d_in) for layer in models.distinct_layers("llama3-8b")}
    assert layers == {
        "q/o": (4096, 4096),
        "k/v": (1024, 4096),
        "gate/up": (14336, 4096),
        "down": (4096, 14336),
    }
    # 2 FLOP x 3 products x weights x tokens: the arithmetic of a pass over 100 samples of 128 tokens
    assert flop(6_979_321_856, 0, 12_800) == pytest.approx(536e12, rel=1e-3)


def test_random_models_have_the_shapes_of_their_name():
    model, samples = models.inputs("", "tiny", "bf16", "cpu", 3, 7)
    found = {tuple(p.shape) for n, p in model.named_parameters() if "_proj" in n}
    assert found == set(models.decoder_shapes("tiny"))
    assert next(model.parameters()).dtype == torch.bfloat16 and [len(s) for s in samples] == [7] * 3
    with pytest.raises(ValueError, match="llama3-8b"):
        models.inputs("", "llama4", "fp32", "cpu", 1, 8)


def test_the_floor_is_the_scarcest_resource():
    gpu = gpus.Gpu("x", bf16=1e12, fp32=1e11, bandwidth=1e9, memory=1e9)
    found = gpus.squared_gradient_floor(gpu, 100, 200, tokens=50, samples=5)
    assert found["products"] == pytest.approx(2 * 100 * 200 * 50 / 1e12)
    assert found["squares"] == pytest.approx(2 * 100 * 200 * 5 / 1e11)
    assert found["memory"] == pytest.approx((2 * 300 * 50 + 8 * 20_000) / 1e9)
    assert found["floor"] == found["memory"]
    with pytest.raises(ValueError, match="h100, h200, 4090, a100"):
        gpus.named("v100")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", list(peers.PASSES))
def test_a_peer_leaves_the_model_as_it_was(name):
    model, samples = models.inputs("", "tiny", "fp32", "cpu", 3, 8)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    module = model.model.layers[0].self_attn.q_proj
    attributes = set(vars(module))
    first = run(name, model, samples)
    second = run(name, model, samples)
    expected = tomfisher.fisher_diagonal(model, samples, progress=False, impl="reference")
    for tensor, exact in expected.items():
        scale = exact.abs().max()
        assert float((first[tensor] - exact).abs().max() / scale) < 1e-5
        assert torch.equal(first[tensor], second[tensor]) or name == "vmap"
    assert not module._forward_hooks and not module._backward_hooks and set(vars(module)) == attributes
    assert not model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


def run(name, model, samples):
    try:
        return peers.PASSES[name](model, samples, 2)
    except ImportError as error:
        pytest.skip(str(error))


def test_peers_refuse_ragged_samples():
    model, _ = models.inputs("", "tiny", "fp32", "cpu", 1, 8)
    ragged = [Sample(torch.arange(n), torch.arange(n)) for n in (4, 5)]
    with pytest.raises(ValueError, match="one length"):
        peers.vmap_grad(model, ragged, 2)


@pytest.mark.parametrize("name", topk_data.DISTRIBUTIONS)
def test_a_file_holds_the_values_of_the_vector(tmp_path, name, monkeypatch):
    monkeypatch.setattr(topk_data, "_BASE", 300)  # 1,000 values take several parts
    values = topk_data.values(name, 1000)
    topk_data.write_file(name, 1000, None, tmp_path / "F.safetensors")
    span = read_spans(tmp_path / "F.safetensors")["F"]
    stored = np.fromfile(tmp_path / "F.safetensors", dtype=np.float32, offset=span.offset)
    assert torch.equal(torch.from_numpy(stored), values) and bool(values.isfinite().all())
    assert topk_data.read_file(tmp_path / "F.safetensors", 3) == (tmp_path / "F.safetensors").stat().st_size


def test_distributions_are_what_they_are_called():
    assert bool((topk_data.values("equal", 100) == 1).all())
    rising = topk_data.values("sorted", 100)
    assert bool((rising[1:] > rising[:-1]).all())
    falling = topk_data.values("reversed", 100)
    assert bool((falling[1:] < falling[:-1]).all()) and falling[0] == rising[-1]
    assert topk_data.values("few", 1000).unique().tolist() == list(range(8))
    assert 0 < topk_data.values("denormal", 1000).max() < torch.finfo(torch.float32).tiny
    assert len(topk_data.values("lognormal", 1000).unique()) > 990
    with pytest.raises(ValueError, match="uniform"):
        topk_data.values("normal", 10)


def test_real_values_come_from_a_store(tmp_path):
    F = tomfisher.FisherDiagonal({"a": torch.tensor([[3.0, 1.0]]), "b": torch.tensor([2.0])}, 1, 1)
    F.save(tmp_path / "store")
    assert topk_data.values("fisher", 3, str(tmp_path / "store")).tolist() == [3.0, 1.0, 2.0]
    assert json.loads((tmp_path / "store" / "fisher.json").read_text())["num_samples"] == 1


def test_nth_element_finds_the_kth_largest():
    values = torch.rand(1000)
    try:
        found = [kth_largest(values, k) for k in (1, 10, 1000)]
    except NotImplementedError as error:
        pytest.skip(str(error))
    ordered = values.sort(descending=True).values
    assert found == [float(ordered[k - 1]) for k in (1, 10, 1000)]
