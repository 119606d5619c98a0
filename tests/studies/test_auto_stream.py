"""`--stream auto`: what does not fit into the memory that may be taken is streamed, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bits import same_bits
from tiny_models import random_model
from tomfisher import FisherDiagonal
from tomfisher.cli.main import main
from tomfisher.fisher.sizes import sizes_of
from tomfisher.fisher.ways import ROOM, choose_way
from tomfisher.models.load import load_structure
from tomfisher.runtime.machine import Machine
from tomfisher.studies import Config, Experiment
from tomfisher.studies.auto_stream import decided, work_of


def between(settings: dict[str, Any]) -> int:
    """Bytes in which the streamed Fisher diagonals of a study fit, and resident ones do not."""
    config = Config.from_dict(settings)
    sizes = sizes_of(load_structure(config.model), config.params, torch.float32)
    choice = choose_way(sizes, Machine(memory=1 << 40), work_of(config))
    resident, streamed = (candidate.footprint.least for candidate in choice.candidates[:2])
    assert streamed < resident
    return int((resident + streamed) / 2 / ROOM)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> str:
    """A model of four layers that are most of it, with a tokenizer."""
    import transformers as tf

    folder = tmp_path_factory.mktemp("deep") / "model"
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
    )
    random_model(config, noise=0.05).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def settings(tiny_settings: dict[str, Any], deep: str, tmp_path: Path) -> dict[str, Any]:
    """A study of it."""
    return tiny_settings | {"model": deep, "output_path": str(tmp_path / "run"), "analysis_prompts": 0}


def test_what_fits_is_not_streamed(settings: dict[str, Any]) -> None:
    for changes in ({}, {"max_memory": "64GB"}, {"max_memory": "10KB", "stream": "no"}):
        config, why = decided(Config.from_dict(settings | changes))
        assert not config.is_streamed and why == ""
    nothing_fits, _ = decided(Config.from_dict(settings | {"max_memory": "10KB"}))
    assert not nothing_fits.is_streamed
    generating, _ = decided(Config.from_dict(settings | {"max_memory": "10KB", "method": "generate"}), "fp32")
    assert not generating.is_streamed


def test_what_does_not_fit_is_streamed_and_said(settings: dict[str, Any]) -> None:
    config, why = decided(Config.from_dict(settings | {"max_memory": str(between(settings))}))
    assert config.is_streamed
    assert why.startswith("streaming: the model and F would take ") and "--stream no" in why
    weights = sizes_of(load_structure(config.model), config.params, torch.float32).model_bytes
    for memory, streamed in ((1.05 * weights / ROOM, False), (0.95 * weights / ROOM, True)):
        chosen, why = decided(Config.from_dict(settings | {"max_memory": str(int(memory))}), "fp32")
        assert chosen.is_streamed == streamed
        assert why.startswith("streaming: the model would take") == streamed


def test_a_size_that_is_none_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="max_memory must be a size such as 80GB"):
        Config.from_dict(settings | {"max_memory": "plenty"})


@pytest.mark.slow
def test_fisher_streams_what_does_not_fit(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("model", "task", "n_task")
    flags = [part for name in names for part in (f"--{name}", str(settings[name]))]
    flags += ["--device", "cpu", "--fisher_dtype", "fp32"]
    memory = between(Config.from_dict({name: settings[name] for name in names}).to_dict())
    for name, limit in (("small", memory), ("large", 1 << 40)):
        assert (
            main(["fisher", *flags, "--max_memory", str(limit), "--output_path", str(tmp_path / name)]) == 0
        )
        assert ("streaming: the model and F" in capsys.readouterr().err) == (name == "small")
    small, large = (FisherDiagonal.load(tmp_path / name) for name in ("small", "large"))
    assert "streamed" in small.metadata and "streamed" not in large.metadata
    assert same_bits(dict(small), dict(large))


@pytest.mark.slow
def test_a_study_that_was_streamed_goes_on_streamed(settings: dict[str, Any]) -> None:
    said: list[str] = []
    limited = settings | {"max_memory": str(between(settings))}
    first = Experiment(limited, say=said.append).run(progress=False)
    assert any(line.startswith("streaming: ") for line in said)
    folder = Path(settings["output_path"])
    (folder / "points" / "baseline.json").unlink()
    again = Experiment(settings).run(progress=False)  # in all the memory that is free
    assert again.rows == first.rows
    assert json.loads((folder / "results.json").read_text())["provenance"]["config"]["stream"] == "yes"
