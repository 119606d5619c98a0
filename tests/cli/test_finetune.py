"""`tomfisher finetune` and the grid of `tomfisher sweep`, on the testbed model with a few steps."""

from __future__ import annotations

import json

import pytest
import torch

from tomfisher import SparseMask
from tomfisher.cli.main import main
from tomfisher.finetune import Delta, apply
from tomfisher.models import load_model
from tomfisher.report import load as load_report
from tomfisher.results import Results
from tomfisher.results.fill_grid import grid_table
from tomfisher.studies import Config
from tomfisher.studies.inputs import stories_sha256
from tomfisher.tasks import load
from tomfisher.tasks.selection import group_units, shuffle_balanced

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures_of_module")]
SMALL = {"control": "testbed", "task": "testbed", "limit": "16", "perplexity_tokens": "256"}
SMALL |= {"perplexity_window": "64", "device": "cpu"}


@pytest.fixture
def mask_file(tmp_path):
    names = [f"model.layers.{layer}.self_attn.{kind}_proj.weight" for layer in (1, 2) for kind in "qk"]
    model = load_model("testbed-llama", "fp32").model
    shapes = {name: tuple(model.get_parameter(name).shape) for name in names}
    SparseMask({name: torch.arange(0, 2000, 7) for name in names}, shapes).save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def flags(*words, **settings):
    few = {"steps": "2", "learning_rates": "1e-3", "n_train": "8", "n_validation": "4", "random_masks": "1"}
    pairs = {**SMALL, **few, **settings}
    return [
        "finetune",
        *words,
        *(word for name, value in pairs.items() for word in (f"--{name}", str(value))),
    ]


def test_trains_measures_and_writes_what_can_be_applied_again(mask_file, tmp_path, capsys):
    pytest.importorskip("peft", reason="LoRA is compared through the package peft (extra `finetune`)")
    out = tmp_path / "ft"
    command = flags(model="testbed-llama", mask=mask_file, output_path=out, train_batch_size="4")
    assert main(command) == 0
    printed = capsys.readouterr()
    for word in ("untouched", "masked", "random x1", "lora", "transfer/false-belief", "delta.safetensors"):
        assert word in printed.out
    assert "training LoRA, rank" in printed.err
    assert (
        f"training {SparseMask.load(mask_file).nnz:,} random entries (seed 0), learning rate 0.001"
        in printed.err
    )
    found = Results.load(out, "finetune")
    assert [row.state for row in found.select(condition="all")] == ["untouched", "masked", "random", "lora"]
    mask = SparseMask.load(mask_file)
    assert found.select(state="masked")[0].trainable == mask.nnz >= found.select(state="lora")[0].trainable
    assert found.provenance["samples"] == {"train": 8, "validation": 4}
    assert found.provenance["data"]["questions"] and found.provenance["plan"]["steps"] == 2
    delta = Delta.load(out / "delta.safetensors")
    assert delta.mask() == mask
    model = load_model("testbed-llama", "fp32").model
    with apply(model, delta):
        assert all(
            torch.equal(model.get_parameter(n).view(-1)[i], delta.new[n]) for n, i in delta.indices.items()
        )
    assert main(command) == 2
    assert "exists. Give another --output_path" in capsys.readouterr().err


def test_a_run_folder_gives_settings_and_mask_and_damage_is_the_start(mask_file, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "masks").mkdir(parents=True)
    settings = {**SMALL, "model": "testbed-llama", "limit": 8, "seed": 5}
    (run / "config.yaml").write_text(Config.from_dict(settings).to_yaml())
    (run / "masks" / "task-control-0.003.safetensors").write_bytes(mask_file.read_bytes())
    words = ["finetune", str(run), "--kappa", "3e-3", "--steps", "1", "--learning_rates", "1e-3", "--no_lora"]
    words += ["--n_train", "6", "--n_validation", "2", "--random_masks", "0", "--limit", "16"]
    words += ["--damage", str(mask_file), "--fill", "zero"]
    assert main(words) == 0
    found = json.loads((run / "finetune" / "finetune.json").read_text())
    states = [found["baseline"], *found["points"]]
    assert [state["state"] for state in states] == ["untouched", "start", "masked"]
    config = found["provenance"]["config"]
    assert (config["limit"], config["seed"], config["model"]) == (16, 5, "testbed-llama")
    assert found["provenance"]["damage"]["fill"] in ("zero", "0", "0.0")
    out = capsys.readouterr().out
    assert "fill zero" in out or states[1]["about"]
    assert out.splitlines()[-1] == f"Report:  tomfisher report {run}"
    words[words.index("3e-3")] = "1e-2"
    assert main([*words, "--overwrite"]) == 2
    assert "no task-control mask at kappa 0.01. It has: task-control-0.003" in capsys.readouterr().err


def test_training_stories_of_a_file(mask_file, tmp_path, capsys):
    questions = load("testbed", n=16)

    def file(stories):
        fields = ("story", "question", "choices", "answer", "condition", "order", "id")
        records = [{field: getattr(story, field) for field in fields} for story in stories]
        (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(record) for record in records))
        return tmp_path / "own.jsonl"

    others = [
        story for story in load("testbed", n=64, seed=1) if story.prompt not in {q.prompt for q in questions}
    ]
    given = {
        "model": "testbed-llama",
        "mask": mask_file,
        "output_path": tmp_path / "out",
        "random_masks": "0",
    }
    assert main(flags("--no_lora", **given, train=file(others))) == 0
    provenance = Results.load(tmp_path / "out", "finetune").provenance
    assert provenance["samples"] == {"train": 8, "validation": 4} and provenance["train_file"]["sha256"]
    assert not provenance["balanced"]
    assert main(flags("--no_lora", "--overwrite", "--balanced", **given)) == 0
    provenance = Results.load(tmp_path / "out", "finetune").provenance
    assert provenance["samples"] == {"train": 8, "validation": 4} and provenance["balanced"]
    seed = provenance["config"]["seed"]
    units = shuffle_balanced(group_units(load("testbed", seed=seed, split="balanced")), seed)
    assert provenance["data"]["training"] == stories_sha256([s for unit in units[:3] for s in unit])
    with pytest.raises(SystemExit):
        main(flags("--balanced", "--overwrite", **given, train=file(others)))
    said = capsys.readouterr().err
    assert "not allowed with argument" in said
    assert (
        "training on 8 stories, choosing the learning rate on 4, of every condition of the Fisher pool"
        in said
    )
    leaking = [questions[3], *(story for story in others if story.id != questions[3].id)]
    assert main(flags("--no_lora", "--overwrite", **given, train=file(leaking))) == 2
    assert f"such as {questions[3].id!r}, are questions of the evaluation" in capsys.readouterr().err


def test_what_is_missing_or_wrong_is_said(mask_file, tmp_path, capsys):
    def refused(words, message):
        assert main(words) == 2
        assert message in capsys.readouterr().err

    out = {"output_path": tmp_path / "x"}
    refused(flags(mask=mask_file, **out), "No model is given")
    refused(flags(model="testbed-llama", **out), "Give either --mask FILE")
    refused(flags(model="testbed-llama", kappa="1e-3", **out), "Give either --mask FILE")
    refused(flags(model="testbed-llama", mask=mask_file), "Give --output_path")
    refused(flags(str(tmp_path), mask=mask_file, **out), "is not a run folder")
    given = {"model": "testbed-llama", "mask": mask_file, **out}
    refused(flags(**{**given, "learning_rates": "fast"}), "--learning_rates must be numbers")
    refused(flags(**{**given, "n_train": "0"}), "--n_train and --n_validation must be at least 1")
    refused(flags(**{**given, "steps": "0"}, random_masks="0"), "at least 1, got 0")
    assert not (tmp_path / "x").exists()


def test_sweep_takes_a_grid_of_fills(tmp_path, capsys):
    base = {
        **SMALL,
        "n_task": "8",
        "n_control": "8",
        "control_length": "32",
        "kappas": "3e-3",
        "random_seeds": "1",
    }
    base["model"] = "testbed-llama"
    stores = {}
    words = [word for name, value in base.items() for word in (f"--{name}", value)]
    assert main(["run", *words, "--output_path", str(tmp_path / "run")]) == 0
    for which in ("task", "control"):
        stores[f"--{which}_store"] = str(tmp_path / "run" / "fisher" / which)
    kept = [
        w
        for n, v in base.items()
        if n not in ("n_task", "n_control", "control_length")
        for w in (f"--{n}", v)
    ]
    kept += [word for pair in stores.items() for word in pair]
    capsys.readouterr()
    grid = ["sweep", *kept, "--fill", "scale:0.5,scale:2", "--output_path", str(tmp_path / "run" / "grid")]
    assert main(grid) == 0
    printed = capsys.readouterr().out
    assert "scale:0.5" in printed and "scale:2" in printed and "corrected together (Holm)" in printed
    for name in ("grid.json", "grid.csv", "scale-0.5/results.json", "scale-2/results.json"):
        assert (tmp_path / "run" / "grid" / name).is_file()
    data = load_report(tmp_path / "run")
    assert set(data.extras) == {"grid"}
    assert [list(row[:2]) for row in grid_table(data.extras["grid"]).rows] == [
        ["none", "0"],
        ["scale:0.5", "0.003"],
        ["scale:2", "0.003"],
    ]
    assert main([*grid[:-3], "scale:1,scale:x", *grid[-2:]]) == 2
    assert "scale:FACTOR" in capsys.readouterr().err
