from __future__ import annotations

import dataclasses

import pytest
import yaml

from tomfisher.studies.config import Config, read_yaml
from tomfisher.studies.parsing import parse_fill
from tomfisher.studies.presets import PRESETS


def test_yaml_round_trip_keeps_every_setting():
    config = Config(
        model="m",
        kappas=(3e-4, 1e-5),
        random_kappas=(1e-5,),
        limit=None,
        fill="scale:0.5",
        perplexity_stride=64,
    )
    again = Config.from_dict(yaml.safe_load(config.to_yaml()))
    assert again == config
    assert set(yaml.safe_load(config.to_yaml())) == {field.name for field in dataclasses.fields(Config)}


def test_kappas_are_read_from_text_sorted_and_without_repetition(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: m\nkappas: [1e-3, 1e-5, 1e-3]\n")  # YAML 1.1 reads 1e-3 as a text
    assert isinstance(yaml.safe_load(file.read_text())["kappas"][0], str)
    assert Config.from_dict(read_yaml(file)).kappas == (1e-5, 1e-3)
    assert Config(model="m", kappas="1e-4,2e-5").kappas == (2e-5, 1e-4)


def test_command_line_wins_over_yaml_wins_over_preset_wins_over_defaults(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("seed: 7\nlimit: 12\n")
    config = Config.resolve({"limit": "40"}, config=file, preset="demo-testbed")
    assert (config.limit, config.seed, config.n_task) == (40, 7, PRESETS["demo-testbed"]["n_task"])
    assert config.scope == "tensor"


def test_how_prompts_are_put_is_read_from_yaml_as_it_is_meant(tmp_path):
    file = tmp_path / "c.yaml"
    for text, gap, bos in (("gap: none\nbos: no", "none", "no"), ('gap: ""\nbos: "yes"', "", "yes")):
        file.write_text(f"model: m\n{text}\n")  # YAML 1.1 reads no as false
        config = Config.from_dict(read_yaml(file))
        assert (config.gap, config.bos) == (gap, bos)
        assert Config.from_dict(yaml.safe_load(config.to_yaml())) == config
    config = Config(model="m", chat_template=True, system_prompt="Be short.")
    assert config.wording() == {
        "gap": "auto",
        "bos": "auto",
        "chat_template": True,
        "system": "Be short.",
    }


def test_unknown_key_names_the_nearest_setting():
    with pytest.raises(ValueError, match=r"Unknown setting 'kappa'\. Did you mean 'kappas'"):
        Config.from_dict({"model": "m", "kappa": 1e-4})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "model is not given"),
        ({"model": "m", "kappas": [1.5]}, "strictly between 0 and 1"),
        ({"model": "m", "kappas": [0.0]}, "the baseline, which is always measured"),
        ({"model": "m", "kappas": [-1e-4]}, "strictly between 0 and 1"),
        ({"model": "m", "kappas": [float("nan")]}, "strictly between 0 and 1"),
        ({"model": "m", "kappas": []}, "kappas is empty"),
        ({"model": "m", "kappas": ["few"]}, "kappas must be numbers"),
        ({"model": "m", "random_kappas": [0.5]}, "must be among kappas"),
        ({"model": "m", "n_task": 0}, "n_task must be at least 1"),
        ({"model": "m", "n_task": 1.5}, "n_task must be a whole number"),
        ({"model": "m", "trust_remote_code": "yes"}, "trust_remote_code must be true or false"),
        ({"model": "m", "supervise": "first"}, "supervise must be one of answer, last, all"),
        ({"model": "m", "gap": "so"}, "gap must be auto, space, none, newline or a text without letters"),
        ({"model": "m", "bos": "maybe"}, "bos must be one of auto, yes, no"),
        ({"model": "m", "normalize": "words"}, "normalize must be one of total, token, character, byte"),
        ({"model": "m", "system_prompt": "Be short."}, "needs the chat template"),
        ({"model": "m", "max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"model": "m", "fill": "median"}, "fill must be mean, zero, noise"),
        ({"model": "m", "random_seeds": -1}, "random_seeds must be 0 or more"),
        ({"model": "m", "control_length": 1}, "control_length must be at least 2"),
        ({"model": "m", "tokens_per_batch": "many"}, "tokens_per_batch must be 'auto' or"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict(values)


def test_fill_is_a_word_a_scale_or_a_number():
    assert [parse_fill(f) for f in ("mean", "scale:2", "0.25", 0.5)] == ["mean", "scale:2", 0.25, 0.5]
    for bad in ("scale:", "scale", "mean:2", ""):
        with pytest.raises(ValueError, match="fill must be"):
            parse_fill(bad)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete_studies(name):
    config = Config.resolve({}, preset=name)
    assert config.limit is not None and config.limit >= 320
    assert config.random_seeds >= 5
    assert len(config.kappas) == (
        5 if name.startswith("demo") else 3
    )  # time is shared by five models in the other


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="demo-testbed, demo-smollm2"):
        Config.resolve({}, preset="demo")


def test_default_run_folder_is_named_after_model_and_task():
    assert Config(model="org/Some-Model", task="x/my task.jsonl").output_path == "runs/Some-Model-my-task"


OWN_TEXTS = {
    "testbed-llama": ("testbed", "testbed"),
    "testbed2-mamba": ("testbed2", "testbed"),
    "smollm2-135m": ("false-belief", "python-reference"),
    "org/testbed-llama": ("false-belief", "python-reference"),
}


@pytest.mark.parametrize("model", list(OWN_TEXTS))
def test_a_testbed_model_brings_its_own_task_and_control(model):
    config = Config(model=model)
    assert (config.task, config.control) == OWN_TEXTS[model]
    written = yaml.safe_load(config.to_yaml())
    assert (written["task"], written["control"]) == OWN_TEXTS[model]
    assert config.output_path.endswith(OWN_TEXTS[model][0])


def test_a_task_or_control_that_is_named_wins_over_the_models_own(tmp_path):
    assert Config(model="testbed-llama", task="false-belief").task == "false-belief"
    assert Config(model="testbed-llama", task="false-belief").control == "testbed"
    file = tmp_path / "c.yaml"
    file.write_text("model: testbed-llama\ncontrol: python-reference\n")
    config = Config.resolve({}, config=file)
    assert (config.task, config.control) == ("testbed", "python-reference")
    assert Config.resolve({"model": "testbed-llama"}, preset="demo-smollm2").task == "false-belief"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control_kappa": "1.5"}, "every control_kappa must lie strictly between 0 and 1"),
        ({"criterion": "fisher,tailor"}, "criterion must be one of .*Did you mean 'taylor'"),
        ({"ratio_quantile": 1.5}, "ratio_quantile must lie from 0 to 1, got 1.5"),
        (
            {"criterion": "wanda", "stream": "yes"},
            "criterion wanda needs weight and input_norm of the whole model",
        ),
    ],
)
def test_other_rules_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict({"model": "testbed-llama", **changes})
    both = Config.from_dict({"model": "testbed-llama", "stream": "yes", "criterion": "ratio, fisher"})
    assert both.criterion == ("ratio", "fisher")
