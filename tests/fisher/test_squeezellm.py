"""The export, read as SqueezeLLM's chunk_models.py reads it: by transformers, in the dtype that the files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import tomfisher
from tiny_models import random_model
from tokenizer_kinds import word_level
from tomfisher import FisherDiagonal
from tomfisher.cli.main import main
from tomfisher.fisher import squeezellm
from tomfisher.fisher.squeezellm import export_squeezellm
from training import training_samples


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A model in float16 in two files, and its store; F of some weights is below what float16 holds."""
    folder = tmp_path_factory.mktemp("squeezellm")
    random_model("llama-gqa", seed=5).half().save_pretrained(folder / "model", max_shard_size="40KB")
    word_level(["</s>", "<unk>", "a"], eos_token="</s>", unk_token="<unk>").save_pretrained(folder / "model")
    loaded = tomfisher.models.load_model(str(folder / "model"), dtype="fp32", device="cpu")
    fisher = tomfisher.fisher_diagonal(loaded.model, training_samples()[:3], progress=False)
    fisher.metadata["model"] = loaded.identity
    fisher.save(folder / "store")
    return str(folder / "model"), str(folder / "store")


def test_transformers_loads_f_as_the_weights(
    made: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squeezellm, "PART", 1000)
    model, store = made
    done = export_squeezellm(model, store, tmp_path / "squares", progress=False)
    loaded, report = tf.LlamaForCausalLM.from_pretrained(done.path, dtype="auto", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    F = FisherDiagonal.load(store)
    for layer in loaded.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        linear = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        for module in (*linear, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            assert module.weight.dtype == torch.float32 and bool((module.weight > 0).any())
    parameters = dict(loaded.named_parameters())
    assert set(done.filled) == set(F) and set(done.filled) | set(done.zero) == set(parameters)
    assert all(torch.equal(parameters[name].detach(), F[name]) for name in F)
    assert not any(bool(parameters[name].any()) for name in done.zero)
    assert min(F[name][F[name] > 0].min().item() for name in F) < torch.finfo(torch.float16).smallest_normal


def test_config_and_tokenizer_are_the_models(made: tuple[str, str], tmp_path: Path) -> None:
    done = export_squeezellm(*made, tmp_path / "squares", progress=False)
    config, old = (json.loads((Path(p) / "config.json").read_text()) for p in (done.path, made[0]))
    assert config.pop("dtype") == config.pop("torch_dtype") == "float32" and old.pop("dtype") == "float16"
    assert config == old
    assert tf.AutoTokenizer.from_pretrained(done.path).convert_tokens_to_ids("a") == 2


def test_the_command_and_what_it_refuses(
    made: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[Any] = ["export", "squeezellm", "--model", made[0], "--store", made[1], "--output_path"]
    assert main([*words, str(tmp_path / "out")]) == 0
    assert "F in place of 14 tensors, 7 that the store" in capsys.readouterr().out.replace("\n  ", " ")
    assert main([*words, str(tmp_path / "out")]) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "out"), "--overwrite"]) == 0
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main([*words, str(tmp_path / "out"), "--overwrite"]) == 2
    assert "mine.txt too" in capsys.readouterr().err.replace("\n  ", " ")
    other = random_model("llama-gqa", seed=6)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="was taken on other weights"):
        export_squeezellm(str(tmp_path / "other"), made[1], tmp_path / "x")
    random_model("gpt2", seed=6).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(
        ValueError, match=r"hold different tensors, the first model\.layers\.0.*\(there none\)"
    ):
        export_squeezellm(str(tmp_path / "gpt2"), made[1], tmp_path / "x")
    assert not (tmp_path / "x").exists()
