"""The Fisher diagonal of a model whose layers come and go: the bits of the resident one, from two readings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from resident import Resident
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

import tomfisher
from tiny_models import ATTENTION, FAMILIES, GROUPED, random_model
from tomfisher.fisher import select_parameters
from tomfisher.fisher.growing import GrowingStore
from tomfisher.fisher.layerwise import LayerwiseRun
from tomfisher.fisher.outer_stages import outer_of
from tomfisher.fisher.record import Asked
from tomfisher.fisher.run import Run
from tomfisher.fisher.stage import WholeModel
from tomfisher.fisher.streamed import SampleSet, stream_diagonals
from tomfisher.models.opened import open_model
from tomfisher.runtime.boundaries import Boundaries
from tomfisher.runtime.layer_calls import UnsupportedLayers
from tomfisher.runtime.layer_guard import examine_layers
from tomfisher.runtime.layerwise import Layers
from tomfisher.runtime.rules import EQUAL

# a parameter that only the probe finds to need every sample alone: its batches are cut up as they were recorded
ALONE = ("mamba", "jamba", "dbrx")


def layer_by_layer(
    model: nn.Module, samples: list[Any], labels: Any = "empirical", tokens: int = 60
) -> LayerwiseRun:
    """What is done for an opened model, on a resident one."""
    layers = Layers(Resident(model), Boundaries())
    examine_layers(layers, gradients=True)
    stage = WholeModel(model, None, labels, "mean", 3)
    selection = select_parameters(model, "decoder-linear")
    run = LayerwiseRun(layers, layers.boundaries, selection, samples, stage, tokens, "auto", "ieee")
    run.record()
    short_loss = layers.forward(run.calls, keep=True, lead=run.short_loss)
    while not run.turn(short_loss):
        run.record()
        layers.forward(run.calls, keep=True)
    return run


def squares(run: LayerwiseRun) -> dict[str, Tensor]:
    """The sums, layer after layer."""
    return {name: F for each in finished(run) for name, F in each.F.items()}


def finished(run: LayerwiseRun) -> list[Run]:
    """The runs of the layers."""
    runs = [run.down(number, lambda tokens: None) for number in range(len(run.layers.modules) - 1, -1, -1)]
    return [each for each in runs if each is not None]


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({*FAMILIES, *ATTENTION} - {"both-ways", *ALONE}))
def test_every_family_gives_the_bits_of_a_resident_run(tiny: SimpleNamespace, family: str) -> None:
    model, samples = random_model(family, noise=0.05), tiny.samples(9)
    expected = tomfisher.fisher_diagonal(model, samples, tokens_per_batch=60, progress=False)
    runs = finished(layer_by_layer(model, samples))
    F = {name: squares for each in runs for name, squares in each.F.items()}
    assert F.keys() == set(expected)
    assert [name for name in F if not torch.equal(F[name], expected[name])] == []
    methods = {name: method for each in runs for name, method in each.methods.describe().items()}
    assert methods == expected.methods


@pytest.mark.slow
@pytest.mark.parametrize("family", ALONE)
def test_where_the_probe_finds_a_fallback_it_is_exact(tiny: SimpleNamespace, family: str) -> None:
    model, samples = random_model(family, noise=0.05), tiny.samples(5)
    runs = finished(layer_by_layer(model, samples))
    F = {name: squares for each in runs for name, squares in each.F.items()}
    methods = {name: method for each in runs for name, method in each.methods.describe().items()}
    assert any(method.startswith("fallback") for method in methods.values())
    result = tomfisher.FisherDiagonal(F, len(samples), 0, methods)
    tiny.assert_exact(result, {name: tiny.definition(model, samples)[name] for name in F})


@pytest.mark.parametrize("kept", [False, True])
def test_rows_that_padding_changes_are_recorded_anew_in_equal_lengths(
    tiny: SimpleNamespace, tmp_path: Path, kept: bool
) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "factor": 8.0}
    rope |= {"long_factor": [2.0, 4.0, 8.0, 8.0], "original_max_position_embeddings": 10}
    settings = {"rope_parameters": rope, "original_max_position_embeddings": 10, "pad_token_id": 0}
    model = random_model(Phi3Config(**{**GROUPED, **settings}), noise=0.2)
    model.save_pretrained(tmp_path / "model")
    samples, folder = tiny.samples(9), str(tmp_path / "model")
    resident = AutoModelForCausalLM.from_pretrained(folder)
    expected = tomfisher.fisher_diagonal(resident, samples, tokens_per_batch=60, progress=False)
    assert expected.metadata["rules"]["batches"] == EQUAL
    opened = open_model(folder)
    out = tmp_path / "store" if kept else None
    F = tomfisher.fisher_diagonal(opened, samples, tokens_per_batch=60, out=out, progress=False)
    assert F.metadata["rules"]["batches"] == EQUAL
    assert F.metadata["streamed"]["passes"] == 2
    assert all(torch.equal(F[name], expected[name]) for name in expected)


@pytest.mark.parametrize("alike", [False, True])  # whether a batch of the run is one of the probe
def test_labels_are_drawn_as_in_a_resident_run(tiny: SimpleNamespace, alike: bool) -> None:
    model, samples = tiny.model("llama-gqa").eval(), tiny.samples(6)
    if alike:
        texts = torch.arange(3, 37).split([20, 14])
        samples = [tomfisher.Sample(ids, ids) for ids in texts]
    expected = tomfisher.fisher_diagonal(
        model, samples, labels="sampled", seed=3, tokens_per_batch=60, progress=False
    )
    runs = finished(layer_by_layer(model, samples, "sampled"))
    F = {name: squares for each in runs for name, squares in each.F.items()}
    assert all(torch.equal(F[name], expected[name]) for name in expected)
    methods = {name: method for each in runs for name, method in each.methods.describe().items()}
    assert methods == expected.methods


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """The folder of a small model of four layers."""
    random_model("smollm3", noise=0.05).save_pretrained(tmp_path / "model", max_shard_size="20KB")
    return str(tmp_path / "model")


def test_maps_that_only_a_forward_shows_are_found_one_layer_at_a_time(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    model, samples = random_model("qwen2-moe", noise=0.05), tiny.samples(3)
    model.save_pretrained(tmp_path / "model")
    F = tomfisher.fisher_diagonal(open_model(str(tmp_path / "model")), samples, progress=False)
    assert "model.layers.1.mlp.gate.weight" in F  # the router
    assert list(F) == list(select_parameters(model, "decoder-linear"))
    assert F.metadata["coverage"]["missing"] == []
    streamed = F.metadata["streamed"]
    assert streamed["bytes_read"] <= 2.05 * streamed["file_bytes"]  # the model is asked with made-up weights


@pytest.mark.parametrize("boundary", ["ram", "folder"])
def test_an_opened_model_gives_the_same_bits(
    tiny: SimpleNamespace, saved: str, tmp_path: Path, boundary: str
) -> None:
    samples = tiny.samples(7)
    opened = open_model(saved)
    place = boundary if boundary == "ram" else str(tmp_path)
    F = tomfisher.fisher_diagonal(opened, samples, tokens_per_batch=60, progress=False, boundary=place)
    expected = tomfisher.fisher_diagonal(
        AutoModelForCausalLM.from_pretrained(saved), samples, tokens_per_batch=60, progress=False
    )
    assert list(F) == list(expected) and F.methods == expected.methods
    assert all(torch.equal(F[name], expected[name]) for name in F)
    for key in ("definition", "rules", "coverage", "probed_tokens", "data_sha256", "implementations"):
        assert F.metadata[key] == expected.metadata[key]
    assert F.metadata["model"]["weights_sha256"] == expected.metadata["model"]["weights_sha256"]
    streamed = F.metadata["streamed"]
    assert streamed["passes"] == 1
    headers = streamed["bytes_read"] - 2 * streamed["file_bytes"]
    assert headers < 0.5 * streamed["file_bytes"]  # tiny shards are headers for the most part


@pytest.mark.parametrize("family", ["gpt2", "llama-gqa", "opt", "mixtral", "gemma2"])
@pytest.mark.parametrize("params", ["all", "outside"])
def test_parameters_outside_the_layers_have_the_bits_of_a_resident_run(
    tiny: SimpleNamespace, tmp_path: Path, family: str, params: Any
) -> None:
    model, samples = random_model(family, noise=0.05), tiny.samples(5)
    inside = next(name for name, _ in Resident(model).layers).rpartition(".")[0]
    chosen = params if params == "all" else lambda name, parameter: not name.startswith(inside)
    model.save_pretrained(tmp_path / "model")
    resident = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    settings: dict[str, Any] = {"params": chosen, "tokens_per_batch": 60, "progress": False}
    expected = tomfisher.fisher_diagonal(resident, samples, **settings)
    opened = open_model(str(tmp_path / "model"))
    F = tomfisher.fisher_diagonal(opened, samples, **settings)
    assert list(F) == list(expected) and F.methods == expected.methods
    assert [name for name in F if not torch.equal(F[name], expected[name])] == []
    outside = [name for name in F if not name.startswith(inside)]
    assert len(outside) >= 2 and all(F[name].any() for name in outside)
    assert F.metadata["streamed"]["passes"] == 1


def test_a_tied_embedding_is_counted_once_per_sample(tiny: SimpleNamespace, tmp_path: Path) -> None:
    model = random_model(LlamaConfig(**{**GROUPED, "tie_word_embeddings": True}), noise=0.05)
    model.save_pretrained(tmp_path / "model")
    samples, name = tiny.samples(4), "model.embed_tokens.weight"
    F = tomfisher.fisher_diagonal(open_model(str(tmp_path / "model")), samples, params=[name], progress=False)
    assert F.methods == {name: "fallback: tied: also lm_head.weight"}
    tiny.assert_exact(F, {name: tiny.definition(model, samples)[name]})


def test_a_parameter_that_layers_get_something_of_is_refused(tiny: SimpleNamespace) -> None:
    model: Any = random_model("llama-gqa", noise=0.05)
    model.model.rotary_emb.scale = nn.Parameter(torch.ones(()))
    model.model.rotary_emb.register_forward_hook(lambda module, args, out: (out[0] * module.scale, out[1]))
    layers = Layers(Resident(model), Boundaries())
    with pytest.raises(UnsupportedLayers, match=r"rotary_emb\.scale also has a part in what the layers get"):
        outer_of(layers, dict(model.named_parameters()))


def test_labels_are_drawn_for_short_samples_that_the_probe_sees_whole(tiny: SimpleNamespace) -> None:
    model = random_model("llama-gqa", noise=0.05)
    samples = [tomfisher.Sample(s.input_ids[:7], s.input_ids[:7]) for s in tiny.samples(3)]
    settings: dict[str, Any] = {"labels": "sampled", "seed": 3, "progress": False}
    expected = tomfisher.fisher_diagonal(model, samples, tokens_per_batch=7, **settings)
    F = squares(layer_by_layer(model, samples, "sampled", 7))
    assert all(torch.equal(F[name], expected[name]) for name in expected)


def test_a_sample_that_the_model_has_no_rows_for_is_refused_before_the_work(
    tiny: SimpleNamespace, saved: str
) -> None:
    opened = open_model(saved)
    bad = tomfisher.Sample(torch.tensor([1, 2, 5000]), torch.tensor([1, 2, 5000]))
    with pytest.raises(ValueError, match="5000"):
        tomfisher.fisher_diagonal(opened, [*tiny.samples(2), bad], progress=False)
    layer_bytes = sum(p.numel() * p.element_size() for p in opened.layers[0][1].parameters())
    assert opened.bytes_read < opened.file_bytes - layer_bytes


class Killed(BaseException):
    """Stands for the end of the process: nobody catches it."""


@pytest.mark.parametrize("boundary", ["auto", "ram"])
@pytest.mark.parametrize("at", [1, 4, 5, 8])
def test_a_run_goes_on_where_it_was_interrupted(
    tiny: SimpleNamespace, saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boundary: str, at: int
) -> None:
    samples, out = tiny.samples(5), tmp_path / "store"
    whole = tmp_path / "whole"
    tomfisher.fisher_diagonal(open_model(saved), samples, out=whole, progress=False)
    runs: list[int] = []
    original = Layers.on

    def counted(self: Layers, number: int, following: int | None = None) -> Any:
        runs.append(number)
        if len(runs) == at:
            raise Killed
        return original(self, number, following)

    monkeypatch.setattr(Layers, "on", counted)
    with pytest.raises(Killed):
        tomfisher.fisher_diagonal(open_model(saved), samples, out=out, boundary=boundary, progress=False)
    with pytest.raises((FileNotFoundError, ValueError)):
        tomfisher.FisherDiagonal.load(out)
    at = 10_000
    F = tomfisher.fisher_diagonal(open_model(saved), samples, out=out, boundary=boundary, progress=False)
    if boundary == "auto":
        assert len(runs) == 8 + 1  # four layers up and down, and the one that was interrupted
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "store", "whole"]
    for file in sorted(whole.glob("*.safetensors")):
        assert file.read_bytes() == (out / file.name).read_bytes()
    assert F.num_samples == 5


@pytest.mark.parametrize("boundary", ["auto", "ram"])
def test_a_run_of_all_parameters_goes_on_after_every_step(
    tiny: SimpleNamespace, saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boundary: str
) -> None:
    samples, out, whole = tiny.samples(3), tmp_path / "store", tmp_path / "whole"
    settings: dict[str, Any] = {"params": "all", "boundary": boundary, "progress": False}
    expected = tomfisher.fisher_diagonal(open_model(saved), samples, out=whole, **settings)
    original, steps = GrowingStore.commit, list[str]()

    def killing(self: GrowingStore, step: str, *args: Any, **kwargs: Any) -> None:
        original(self, step, *args, **kwargs)
        steps.append(step)
        raise Killed

    monkeypatch.setattr(GrowingStore, "commit", killing)
    while True:
        try:
            F = tomfisher.fisher_diagonal(open_model(saved), samples, out=out, **settings)
            break
        except Killed:
            pass
    ups = [f"padded batches: up {number}" for number in range(4)] + ["turned"]
    downs = [f"down {number}" for number in range(4, -2, -1)]  # from after the layers to before them
    assert steps == [*(ups if boundary == "auto" else []), *downs]
    assert F.methods == expected.methods
    for file in sorted(whole.glob("*.safetensors")):
        assert file.read_bytes() == (out / file.name).read_bytes()


def test_another_loss_layer_by_layer_is_refused(tiny: SimpleNamespace) -> None:
    run = layer_by_layer(random_model("llama-gqa", noise=0.05), tiny.samples(4))
    assert run.turn(run.short_loss())
    with pytest.raises(UnsupportedLayers, match="in one forward: something else passes between the layers"):
        run.turn(run.short_loss() + 0.01)
    with pytest.raises(UnsupportedLayers, match="nan in one forward"):
        run.turn(float("nan"))


def test_two_sets_share_the_readings(tiny: SimpleNamespace, saved: str, tmp_path: Path) -> None:
    first, second = tiny.samples(5), tiny.samples(8)
    asked = Asked("decoder-linear", "empirical", "mean", 60, "auto", 0, "ieee")
    alone = [
        tomfisher.fisher_diagonal(open_model(saved), samples, tokens_per_batch=60, progress=False)
        for samples in (first, second)
    ]
    opened = open_model(saved)
    sets = [SampleSet(first, facts={"said": 1}), SampleSet(second, tmp_path / "store")]
    together = stream_diagonals(opened, sets, asked, progress=False)
    for one, other in zip(alone, together, strict=True):
        assert one.methods == other.methods and one.num_samples == other.num_samples
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert together[0].metadata["said"] == 1
    read = together[1].metadata["streamed"]
    assert read["passes"] == 1 and read["bytes_read"] <= alone[0].metadata["streamed"]["bytes_read"]
