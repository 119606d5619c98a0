from __future__ import annotations

import pytest
import torch

from tiny_models import config_of, random_model, smallest_llama
from tokenizer_kinds import word_level
from tomfisher.models import load, load_model

WORDS = ("<unk>", "the", "cat", "sat", "on", "a", "mat")


def tiny_llama():
    return smallest_llama(rope_parameters={"rope_type": "default", "rope_theta": 12345.0})


@pytest.fixture
def folder(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "m")
    word_level(WORDS, unk_token="<unk>").save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_local_folder_gives_model_in_eval_mode_with_a_pad_token(folder):
    loaded = load_model(str(folder), device="cpu")
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert loaded.tokenizer.pad_token == "<unk>"
    assert loaded.tokenizer("the cat")["input_ids"] == [1, 2]


def test_a_folder_that_declares_a_generic_tokenizer_gets_it_in_a_family_with_its_own(tmp_path):
    random_model(config_of("qwen2")).save_pretrained(tmp_path)
    word_level(WORDS, unk_token="<unk>").save_pretrained(tmp_path)
    assert load_model(str(tmp_path), device="cpu").tokenizer("the cat")["input_ids"] == [1, 2]


def test_identity_follows_the_weights_and_not_the_folder_or_dtype(folder, tmp_path):
    first = load_model(str(folder), device="cpu").identity
    assert first["num_parameters"] == sum(p.numel() for p in tiny_llama().parameters())
    folder.rename(tmp_path / "elsewhere")
    moved = load_model(str(tmp_path / "elsewhere"), dtype="bf16", device="cpu").identity
    assert (moved["weights_sha256"], moved["config_sha256"]) == (
        first["weights_sha256"],
        first["config_sha256"],
    )
    assert (first["dtype"], moved["dtype"]) == ("fp32", "bf16")
    torch.manual_seed(1)
    tiny_llama().save_pretrained(tmp_path / "elsewhere")
    other = load_model(str(tmp_path / "elsewhere"), device="cpu").identity
    assert other["weights_sha256"] != first["weights_sha256"]
    assert other["config_sha256"] == first["config_sha256"]


def test_half_precision_keeps_rotary_frequencies_in_float32(folder):
    model = load_model(str(folder), dtype="bf16", device="cpu").model
    exact = 12345.0 ** (-torch.arange(0, 8, 2) / 8)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, exact)


def test_checkpoint_dtype_is_kept_on_request(folder):
    tiny_llama().to(torch.float16).save_pretrained(folder)
    assert load_model(str(folder), dtype="checkpoint", device="cpu").model.dtype == torch.float16
    assert load_model(str(folder), dtype="auto", device="cpu").model.dtype == torch.float32


def test_tokenizer_without_any_special_token_is_refused(folder):
    word_level(WORDS).save_pretrained(folder)
    with pytest.raises(ValueError, match="no special token at all"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("smollm2-135", "Did you mean 'smollm2-135m'"),
        ("testbed-lama", "Did you mean 'testbed-llama'"),
        ("/no/such/folder", "no such file or folder"),
        ("missing.gguf", "no such file or folder"),
        ("org/no-such-model-anywhere", "no such folder, the Hugging Face hub cannot be reached"),
    ],
)
def test_unknown_model_is_one_error_with_the_builtin_names(source, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_model(source, device="cpu")
    assert "smollm2-135m, testbed-llama" in str(caught.value)


def test_folder_without_config_and_file_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(ValueError, match=r"is a file, but no \.gguf"):
        load_model(str(tmp_path / "weights.bin"))


def test_devices_and_dtypes_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="like 'cpu' or 'cuda:0'"):
        load.resolve_device("gpu")
    with pytest.raises(ValueError, match="CUDA device"):
        load.resolve_device("cuda:99")
    with pytest.raises(ValueError, match="one of fp32, bf16, fp16"):
        load.resolve_dtype("int8", torch.device("cpu"))
    with pytest.raises(ValueError, match="must be a floating-point dtype"):
        load.resolve_dtype(torch.int8, torch.device("cpu"))


def test_auto_dtype_is_bf16_on_cuda_and_fp32_elsewhere():
    assert load.resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert load.resolve_dtype("auto", torch.device("cpu")) == torch.float32
