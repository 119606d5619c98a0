"""An adapter trained on stories: it loads, says what it was trained on, and is a function of the recipe."""

from __future__ import annotations

import json

import pytest
import torch

from tiny_models import smallest_llama
from tomfisher.finetune import adapter
from tomfisher.finetune.adapter import AdapterRecipe, train_adapter
from tomfisher.models import load_model

pytest.importorskip("peft")

SMALL = AdapterRecipe(steps=3, rank=2, stories=2, windows=1, window_tokens=16, learning_rate=0.05, warmup=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny model that reads English."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = load_model("smollm2-135m", device="cpu").tokenizer
    smallest_llama(vocab_size=len(tokenizer), tie_word_embeddings=True).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def little():
    """Less text and fewer questions than a real training has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "HELD_OUT_QUESTIONS", 16)
        patch.setattr(adapter, "HELD_OUT_TOKENS", 64)
        patch.setattr(adapter, "DRAWN_WINDOWS", 8)
        patch.setattr(
            adapter.replay, "documents", lambda: [adapter.__doc__ or "", train_adapter.__doc__ or ""]
        )
        yield


@pytest.fixture(scope="module")
def trained(base, little, tmp_path_factory):
    """The folder and the record of a training."""
    folder = tmp_path_factory.mktemp("trained") / "tom"
    return folder, train_adapter(str(base), folder, SMALL, threads=1, progress=False)


def test_what_was_trained_loads_and_changes_the_model(base, trained) -> None:
    folder, record = trained
    plain, tuned = (load_model(str(path), dtype="fp32", device="cpu") for path in (base, folder))
    assert set(dict(plain.model.named_parameters())) == set(dict(tuned.model.named_parameters()))
    changed = [
        name
        for name, weight in tuned.model.named_parameters()
        if not torch.equal(weight, plain.model.get_parameter(name))
    ]
    assert len(changed) == 7 * plain.model.config.num_hidden_layers
    assert json.loads((folder / "training.json").read_text()) == record
    assert record["base_weights_sha256"] == plain.identity["weights_sha256"]
    assert set(record["result"]["before"]["accuracy"]) == set(record["result"]["after"]["accuracy"])
    assert [entry["step"] for entry in record["log"]] == [1, 3]


def test_the_same_recipe_gives_the_same_adapter_and_another_seed_another(base, trained, tmp_path) -> None:
    _, record = trained
    again = train_adapter(str(base), tmp_path / "again", SMALL, threads=1, progress=False)
    assert again["result"]["sha256"] == record["result"]["sha256"]
    other = AdapterRecipe(**{**record["recipe"], "seed": 1})
    assert (
        train_adapter(str(base), tmp_path / "other", other, threads=1, progress=False)["result"]
        != record["result"]
    )


def test_an_adapter_of_another_base_is_refused(base, trained, tmp_path) -> None:
    folder, record = trained
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for path in folder.iterdir():
        (wrong / path.name).write_bytes(path.read_bytes())
    (wrong / "training.json").write_text(json.dumps({**record, "base_weights_sha256": "0" * 64}))
    with pytest.raises(
        ValueError, match=r"fingerprint 000000000000, but those of .* another model or version"
    ):
        load_model(str(wrong), device="cpu")


def test_a_folder_is_not_overwritten_and_settings_are_checked(base, trained, tmp_path) -> None:
    folder, _ = trained
    with pytest.raises(ValueError, match="exists already"):
        train_adapter(str(base), folder, SMALL, progress=False)
    for wrong in ({"steps": 0}, {"slips": 0.5}, {"learning_rate": float("nan")}, {"window_tokens": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AdapterRecipe(**wrong)


def test_a_diverging_training_leaves_nothing(base, tmp_path) -> None:
    steep = AdapterRecipe(**{**vars(SMALL), "learning_rate": 1e30, "steps": 20})
    with pytest.raises(FloatingPointError, match="training loss is nan at step"):
        train_adapter(str(base), tmp_path / "none", steep, threads=1, progress=False)
    assert not list(tmp_path.iterdir())
