from __future__ import annotations

import errno
import json
import pickle

import pytest
import torch
import transformers as tf

from tiny_models import SMALLEST, smallest_llama
from tomfisher.cli.main import main
from tomfisher.models import load_model
from tomfisher.models.loading_errors import way_out


def rewrite(name, content):
    def spoil(folder):
        (folder.path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def edit_json(name, **values):
    def spoil(folder):
        file = folder.path / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return spoil


def cut(name, to):
    def spoil(folder):
        file = folder.path / name
        file.write_bytes(file.read_bytes()[:to])

    return spoil


def pickled(content):
    def spoil(folder):
        (folder.path / "model.safetensors").unlink()
        (folder.path / "pytorch_model.bin").write_bytes(content)

    return spoil


SPOILT = {
    "config that is no JSON": (rewrite("config.json", "{"), "the config"),
    "config that is a list": (rewrite("config.json", "[]"), "the config"),
    "config in UTF-16": (rewrite("config.json", "{}".encode("utf-16")), "the config"),
    "config without a type": (rewrite("config.json", "{}"), "model_type"),
    "config nested without end": (rewrite("config.json", '{"a":' * 10**5), "the config"),
    "type of a newer library": (edit_json("config.json", model_type="llama9"), "pip install -U transformers"),
    "text for a number": (edit_json("config.json", hidden_size="sixteen"), "hidden_size"),
    "heads that do not divide": (edit_json("config.json", num_attention_heads=3), "attention heads"),
    "unknown activation": (edit_json("config.json", hidden_act="swoosh"), "swoosh"),
    "unknown rotary scaling": (
        edit_json("config.json", rope_parameters={"rope_type": "moon", "rope_theta": 1e4}),
        "moon",
    ),
    "vocabulary of another": (edit_json("config.json", vocab_size=20), "another shape"),
    "tokenizer of a newer library": (edit_json("tokenizer.json", model={"type": "NewBPE"}), "the tokenizer"),
    "tokenizer that is no JSON": (rewrite("tokenizer.json", "{"), "the tokenizer"),
    "tokenizer settings in UTF-16": (rewrite("tokenizer_config.json", "{}".encode("utf-16")), "the tokenizer"),
    "tokenizer settings that are a list": (rewrite("tokenizer_config.json", "[]"), "the tokenizer"),
    "truncated weights": (cut("model.safetensors", 500), "Fetch it again"),
    "weights cut at the end": (cut("model.safetensors", -8), "Fetch it again"),
    "empty weights": (rewrite("model.safetensors", b""), "Fetch it again"),
    "no weights": (lambda folder: (folder.path / "model.safetensors").unlink(), "model.safetensors"),
    "pickle of code": (pickled(pickle.dumps(print)), "the weights"),
    "truncated pickle": (pickled(b"PK\x03\x04"), "the weights"),
    "own code, untrusted": (
        edit_json("config.json", model_type="mine", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}),
        "--trust_remote_code",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=list(SPOILT))
def test_a_folder_that_cannot_be_loaded_is_one_short_paragraph(saved, spoil, message):
    folder = saved(smallest_llama())
    spoil(folder)
    with pytest.raises(ValueError, match="model") as caught:
        load_model(folder.name, device="cpu")
    text = str(caught.value)
    assert message in text
    assert repr(folder.name) in text
    assert "\n" not in text
    assert len(text) < 1000


OTHERS = {
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    ),
    "bart": lambda: tf.BartForConditionalGeneration(
        tf.BartConfig(
            vocab_size=16, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
            encoder_attention_heads=2, decoder_attention_heads=2, pad_token_id=0, max_position_embeddings=32,
        )
    ),
    "vit": lambda: tf.ViTModel(tf.ViTConfig(**SMALLEST, image_size=8, patch_size=4)),
    "distilbert": lambda: tf.DistilBertModel(
        tf.DistilBertConfig(vocab_size=16, dim=16, hidden_dim=16, n_layers=1, n_heads=2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(OTHERS))
def test_another_kind_of_model_says_what_it_is_and_what_is_needed(saved, kind):
    folder = saved(OTHERS[kind]())
    with pytest.raises(ValueError, match=rf"is of type {kind} .*decoder-only language model") as caught:
        load_model(folder.name, device="cpu")
    assert len(str(caught.value)) < 500


RAISED = [
    ValueError("Unrecognized configuration class T5Config. Model type should be one of " + "XConfig, " * 200),
    RuntimeError("size mismatch\n\tfor a weight " * 200),
    Exception("data did not match any variant of untagged enum ModelUntagged at line 1 column 628"),
    KeyError("hidden_act"),
    AttributeError("'NoneType' object has no attribute 'get'"),
    RecursionError("maximum recursion depth exceeded"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    AssertionError(),
    OSError("no file named model.safetensors"),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "part", ["AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"], ids=["config", "tokenizer", "weights"]
)
def test_whatever_a_load_raises_is_one_paragraph_of_exit_code_2(saved, monkeypatch, capsys, part, error):
    folder = saved(smallest_llama())
    if part == "AutoTokenizer":
        (folder.path / "tokenizer_config.json").unlink()  # leave the choice to it
    monkeypatch.setattr(getattr(tf, part), "from_pretrained", raising(error))
    capsys.readouterr()
    assert main(["evaluate", "--model", folder.name]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("tomfisher: Cannot load the")
    assert len(lines[0]) < 1000
    assert "XConfig" not in lines[0]


@pytest.mark.parametrize(
    ("error", "command"),
    [
        (ModuleNotFoundError("No module named 'sentencepiece'", name="sentencepiece"), "pip install sentencepiece"),
        (ImportError("requires the protobuf library.\nSee `pip install protobuf`"), "pip install protobuf"),
        (ValueError("Couldn't instantiate: you need sentencepiece or tiktoken"), "pip install sentencepiece tiktoken"),
    ],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_command(saved, monkeypatch, error, command):
    folder = saved(smallest_llama())
    (folder.path / "tokenizer_config.json").unlink()
    monkeypatch.setattr(tf.AutoTokenizer, "from_pretrained", raising(error))
    kind = ModuleNotFoundError if isinstance(error, ImportError) else ValueError
    with pytest.raises(kind, match=command):
        load_model(folder.name, device="cpu")


UNTOUCHED = [
    MemoryError("out of memory"),
    KeyboardInterrupt(),
    torch.OutOfMemoryError("CUDA out of memory"),
    OSError(errno.ENOSPC, "No space left on device", "cache"),
]


@pytest.mark.parametrize("error", UNTOUCHED, ids=lambda error: type(error).__name__)
def test_errors_that_have_a_meaning_of_their_own_stay_themselves(saved, monkeypatch, error):
    monkeypatch.setattr(tf.AutoModelForCausalLM, "from_pretrained", raising(error))
    with pytest.raises(type(error)) as caught:
        load_model(saved(smallest_llama()).name, device="cpu")
    assert caught.value is error


def test_the_cause_is_kept(saved, monkeypatch):
    error = RuntimeError("something")
    monkeypatch.setattr(tf.AutoModelForCausalLM, "from_pretrained", raising(error))
    with pytest.raises(ValueError, match="RuntimeError: something") as caught:
        load_model(saved(smallest_llama()).name, device="cpu")
    assert caught.value.__cause__ is error


def raising(error):
    def raise_it(*args, **kwargs):
        raise error

    return raise_it


@pytest.mark.parametrize(
    "config",
    [tf.GPT2Config, tf.Qwen2Config, tf.GemmaConfig, tf.GPTNeoXConfig, tf.MambaConfig],
    ids=lambda c: c.model_type,
)
def test_a_folder_without_a_tokenizer_says_so(config, tmp_path):
    config().save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"bare' comes without a tokenizer: .* Put the tokenizer's files"):
        load_model(str(tmp_path / "bare"), device="cpu")


@pytest.mark.parametrize("spoilt", [name for name in SPOILT if "no JSON" in name or "UTF-16" in name])
def test_damaged_files_are_said_to_be_damaged(saved, spoilt):
    folder = saved(smallest_llama())
    SPOILT[spoilt][0](folder)
    with pytest.raises(ValueError, match="The file is damaged or was not downloaded to its end"):
        load_model(folder.name, device="cpu")


@pytest.mark.parametrize("command", ["pip install", "pip install -U", "pip install --no-deps -U"])
def test_the_package_to_install_is_no_option(command):
    error = ImportError(f"needs bitsandbytes: `{command} bitsandbytes>=0.46.1`")
    assert way_out(error, "") == "Install it with: pip install bitsandbytes"
