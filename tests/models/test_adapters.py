from __future__ import annotations

import importlib.util
import json

import pytest
import torch
import transformers as tf

from tiny_models import smallest_llama
from tomfisher.cli.main import main
from tomfisher.models import load_model

peft = pytest.importorskip("peft")

IDS = torch.arange(8)[None]


def llama(**more):
    return smallest_llama(initializer_range=0.3, **more)


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


@pytest.fixture
def adapted(saved, tmp_path):
    """A base folder and an adapter of it with random weights; gives folder, base, and the logits of both together."""

    def make(config, base=None, name="adapter"):
        base = saved(base or llama(), f"{name}-base")
        plain = tf.AutoModelForCausalLM.from_pretrained(base.name)
        model = peft.get_peft_model(plain, config).eval()
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, mean=1.0 if "ia3" in key else 0.0, std=0.3)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name, base, logits(model)

    return make


def lora(**more):
    return peft.LoraConfig(task_type="CAUSAL_LM", r=2, **{"target_modules": ["q_proj", "down_proj"], **more})


KINDS = {
    "lora": lora,
    "dora": lambda: lora(use_dora=True),
    "rank stabilised": lambda: lora(use_rslora=True, lora_alpha=16),
    "a head trained whole": lambda: lora(modules_to_save=["lm_head"]),
    "ia3": lambda: peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "loha": lambda: peft.LoHaConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj"]),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_adapter_is_merged_into_plain_weights(adapted, kind):
    folder, base, want = adapted(KINDS[kind]())
    loaded = load_model(str(folder), dtype="fp32", device="cpu")
    torch.testing.assert_close(logits(loaded.model), want, rtol=1e-4, atol=1e-4)
    plain = load_model(base.name, dtype="fp32", device="cpu")
    assert (logits(loaded.model) - logits(plain.model)).abs().max() > 0.01
    assert type(loaded.model) is type(plain.model)
    assert [n for n, _ in loaded.model.named_modules()] == [n for n, _ in plain.model.named_modules()]
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    said = loaded.identity["loading"]["adapter"]
    assert said["base"] == base.name
    assert list(said["sha256"]) == ["adapter_model.safetensors"]
    assert loaded.identity["weights_sha256"] != plain.identity["weights_sha256"]


def test_a_folder_with_model_and_adapter_is_merged_too(adapted):
    folder, base, want = adapted(lora())
    for file in base.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": "no/where"})
    )
    loaded = load_model(str(folder), dtype="fp32", device="cpu")
    torch.testing.assert_close(logits(loaded.model), want, rtol=1e-4, atol=1e-4)
    assert loaded.identity["loading"]["adapter"]["base"] is None


def test_a_base_that_is_not_whole_is_refused(adapted):
    folder, base, _ = adapted(lora())
    base.edit_weights(lambda weights: {k: v for k, v in weights.items() if "layers.1.mlp.up" not in k})
    with pytest.raises(ValueError, match=r"is an adapter of .* is not whole: 1 of its"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("base", ["org/no-such-model", "/no/such/folder", None])
def test_a_base_that_is_not_there_is_named(adapted, base):
    folder, _, _ = adapted(lora())
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": base}))
    with pytest.raises(ValueError, match="base_model_name_or_path") as caught:
        load_model(str(folder), device="cpu")
    assert len(str(caught.value)) < 1000
    assert base is None or repr(base) in str(caught.value)


def test_an_adapter_of_itself_or_of_an_adapter_is_refused(adapted):
    folder, _, _ = adapted(lora())
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(folder)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="is an adapter itself"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("change", ["lost", "foreign"])
def test_an_adapter_that_does_not_fit_its_base_is_refused(adapted, change):
    from safetensors.torch import load_file, save_file

    folder, _, _ = adapted(lora())
    weights = load_file(folder / "adapter_model.safetensors")
    first = next(iter(weights))
    value = weights.pop(first)
    if change == "foreign":
        weights |= {first: value, first.replace("layers.0", "layers.9"): value.clone()}
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="1 of its weights are absent, or have no place"):
        load_model(str(folder), device="cpu")


def test_an_adapter_whose_merging_changes_what_is_computed_is_refused(adapted):
    folder, _, _ = adapted(lora(target_modules=["lm_head"]), llama(tie_word_embeddings=True))
    with pytest.raises(ValueError, match="other logits"):
        load_model(str(folder), dtype="fp32", device="cpu")


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=["prompt", "prefix", "p-tuning"],
)
def test_virtual_tokens_cannot_be_merged(adapted, capsys, config):
    folder, base, _ = adapted(config)
    with pytest.raises(ValueError, match=f"adapter of type {config.peft_type.value}: it puts"):
        load_model(str(folder), device="cpu")
    capsys.readouterr()
    assert main(["evaluate", "--model", str(folder)]) == 2
    assert repr(base.name) in capsys.readouterr().err


def test_an_adapter_of_another_task_is_refused(adapted):
    folder, _, _ = adapted(lora())
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"task_type": "SEQ_CLS"}))
    with pytest.raises(ValueError, match="for the task SEQ_CLS, no language model"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_settings_that_cannot_be_read_are_refused(adapted, text):
    folder, _, _ = adapted(lora())
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match="Cannot load the adapter of model"):
        load_model(str(folder), device="cpu")


def test_without_peft_the_command_that_installs_it_is_said(adapted, monkeypatch):
    folder, _, _ = adapted(lora())
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "peft" else find(name, *a)
    )
    with pytest.raises(ModuleNotFoundError, match="pip install peft"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("base", [5, ["a"], {"a": 1}])
def test_a_base_that_is_no_text_is_refused(adapted, base):
    folder, _, _ = adapted(lora())
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    with pytest.raises(
        ValueError, match=r"base_model_name_or_path in its adapter_config.json must be a text"
    ):
        load_model(str(folder), device="cpu")


def test_an_adapter_without_its_weights_is_refused(adapted):
    folder, _, _ = adapted(lora())
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"there is no adapter_model.safetensors beside its adapter_config.json"
    ):
        load_model(str(folder), device="cpu")
