from __future__ import annotations

import json

import pytest
import torch

from tomfisher import SparseMask, tasks
from tomfisher.analysis import analyze, interaction, mask_profile
from tomfisher.cli.main import main
from tomfisher.models import describe, load_model
from tomfisher.tasks.encode import encode
from tomfisher.tokens import encode_text

BASE = ["analyze", "--model", "testbed-llama", "--device", "cpu"]
TASK = [*BASE, "--task", "testbed", "--limit", "8"]


@pytest.fixture(scope="module")
def loaded():
    return load_model("testbed-llama", device="cpu")


@pytest.fixture
def mask_file(loaded, tmp_path):
    """Both rows of the slowest pair of query head 1 in layer 2."""
    attention = describe(loaded.model).attention[2]
    rows = attention.q.index[1][attention.rotary.pairs[-1]]
    weight = loaded.model.get_parameter(attention.q.parameter)
    index = (rows[:, None] * weight.shape[1] + torch.arange(weight.shape[1])).flatten().sort().values
    name = attention.q.parameter
    SparseMask({name: index}, {name: tuple(weight.shape)}).save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_it_prints_a_table_for_every_part_and_says_how_short_the_prompts_are(capsys):
    assert main(TASK) == 0
    out, err = capsys.readouterr()
    assert "RoPE spectrum: share of the rotated energy" in out and "Attention to the first token" in out
    assert "8 prompts" in out
    rows = [line.split() for line in out.splitlines()]
    assert [row[:2] for row in rows if row[1:2] in (["q"], ["k"])] == [
        [str(layer), part] for layer in range(4) for part in "qk"
    ]
    assert "8 of 8 prompts are shorter than 64 tokens; the sink rate leaves them out" in err
    assert "largest changes" not in out


def test_with_a_mask_the_pair_that_was_hit_is_on_top(mask_file, tmp_path, capsys, loaded):
    report = tmp_path / "inside.json"
    assert main([*TASK, "--mask", str(mask_file), "--fill", "zero", "--output_path", str(report)]) == 0
    out = capsys.readouterr().out
    table = out.partition("rope, largest changes")[2].splitlines()
    slowest = len(describe(loaded.model).attention[2].rotary.frequencies) - 1
    assert table[3].split()[:4] == ["2", "q", "1", str(slowest)]
    assert table[3].split()[-1] == "-1"
    found = json.loads(report.read_text())
    assert found["mask"] == str(mask_file) and found["model"]["source"] == "testbed-llama"
    assert set(found) == {"model", "scan", "mask", "baseline", "masked", "change", "profile"}
    top = found["change"]["rope"]["largest"][0]
    assert (top["layer"], top["part"], top["head"], top["change"]) == (2, "q", 1, -1)
    assert found["baseline"]["sinks"]["layers"][0] == found["masked"]["sinks"]["layers"][0]
    assert found["baseline"]["sinks"]["layers"][2] != found["masked"]["sinks"]["layers"][2]
    assert main([*TASK, "--output_path", str(report)]) == 2
    assert "exists. Give another --output_path, or --overwrite" in capsys.readouterr().err


def test_the_profile_names_the_head_and_the_frequency_of_the_mask(mask_file, tmp_path, capsys, loaded):
    report = tmp_path / "profile.json"
    arguments = [
        "--parts",
        "profile",
        "--mask",
        str(mask_file),
        "--fill",
        "zero",
        "--output_path",
        str(report),
    ]
    assert main([*TASK, *arguments]) == 0
    out = capsys.readouterr().out
    assert "Attention to the first token" not in out and "RoPE spectrum" not in out
    attention = describe(loaded.model).attention[2]
    masked = 2 * loaded.model.get_parameter(attention.q.parameter).shape[1]
    table = out.partition("Mask profile by weight")[2].splitlines()
    assert table[3].split()[:3] == ["q", "qk", str(masked)]
    sparsity = out.partition("Mask profile: distinct rows")[2].splitlines()[3].split()
    assert sparsity[:2] == ["self_attn.q_proj", "1"] and float(sparsity[3]) == 2
    found = json.loads(report.read_text())
    assert set(found) == {"model", "scan", "mask", "baseline", "profile"}
    spectrum = analyze(loaded.model, prompts_of(loaded), ["rope"]).results["rope"]
    expected = mask_profile(SparseMask.load(mask_file), loaded.model, spectrum, fill="zero")
    assert found["profile"] == json.loads(json.dumps(expected.to_dict()))
    slow = next(t for t in found["profile"]["enrichment"]["model"] if (t["part"], t["rows"]) == ("q", "slow"))
    assert slow["found"] == slow["masked"] == masked and slow["fold"] > 1


def prompts_of(loaded):
    stories = tasks.load("testbed", n=8)
    return [s.input_ids for s in encode(loaded.tokenizer, [s.prompt for s in stories], supervise="all")]


def test_masks_are_compared_without_a_model(mask_file, tmp_path, capsys):
    mask = SparseMask.load(mask_file)
    mask.random_like(1).save(tmp_path / "null.safetensors")
    report = tmp_path / "overlap.json"
    files = [str(mask_file), str(tmp_path / "null.safetensors")]
    assert main(["analyze", "--compare_masks", *files, "--output_path", str(report)]) == 0
    out = capsys.readouterr().out
    shared = (mask & mask.random_like(1)).nnz
    assert out.splitlines()[3].split()[:5] == ["m", "null", str(mask.nnz), str(mask.nnz), str(shared)]
    (pair,) = json.loads(report.read_text())["overlap"]["pairs"]
    assert pair["shared"] == shared and pair["jaccard"] == shared / (2 * mask.nnz - shared)
    (tmp_path / "other").mkdir()
    mask.save(tmp_path / "other" / "m.safetensors")
    assert main(["analyze", "--compare_masks", str(mask_file), str(tmp_path / "other/m.safetensors")]) == 0
    assert str(tmp_path / "other") in capsys.readouterr().out  # two files of one name


def test_masks_of_different_models_and_no_model_at_all_are_said(mask_file, tmp_path, capsys):
    SparseMask({"other": torch.arange(2)}, {"other": (4, 4)}).save(tmp_path / "other.safetensors")
    for arguments, message in (
        (["--compare_masks", str(mask_file), str(tmp_path / "other.safetensors")], "are of different models"),
        (["--compare_masks", str(mask_file)], "--compare_masks takes two or more different mask files"),
        ([], "give --model, or --compare_masks FILE FILE"),
    ):
        assert main(["analyze", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_texts_parts_and_maps(loaded, tmp_path, capsys):
    lines = ["the box is full of apples .", "anna puts the ball in the bag .", "never read"]
    (tmp_path / "prompts.txt").write_text("\n\n".join(lines))
    report = tmp_path / "sinks.json"
    arguments = ["--texts", str(tmp_path / "prompts.txt"), "--limit", "2", "--parts", "sinks"]
    assert main([*BASE, *arguments, "--maps", "1.0", "--output_path", str(report)]) == 0
    assert "RoPE" not in capsys.readouterr().out
    prompts = [encode_text(loaded.tokenizer, line) for line in lines[:2]]
    expected = analyze(loaded.model, prompts, ["sinks"], heads=[(1, 0)]).to_dict()
    assert json.loads(report.read_text())["baseline"] == expected


def test_long_prompts_are_cut_and_that_is_said(capsys):
    assert main([*TASK, "--max_length", "10"]) == 0
    out, err = capsys.readouterr()
    assert "8 prompts, 80 tokens; bands relative to 10 tokens" in out
    assert "8 of 8 texts are longer than max_length=10 tokens" in err


def test_a_model_without_the_part_is_said_and_the_rest_is_printed(tiny_config, tmp_path, capsys, loaded):
    from transformers import AutoModelForCausalLM

    for family in ("mpt", "mamba"):
        config = tiny_config(family, vocab_size=len(loaded.tokenizer))
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / family)
        loaded.tokenizer.save_pretrained(tmp_path / family)
        model = ["analyze", "--model", str(tmp_path / family), "--task", "testbed", "--limit", "4"]
        assert main([*model, "--device", "cpu"]) == 0
        out, err = capsys.readouterr()
        assert f"tomfisher: no rope: {family} has no rotary embedding" in err
        assert ("Attention to the first token" in out) == (family == "mpt")
        assert ("no sinks: mamba has no attention layer" in err) == (family == "mamba")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "rope,waves"], "Unknown part 'waves'. Parts: rope, sinks, profile"),
        (["--parts", ","], "No part to analyse. Parts: rope, sinks, profile"),
        (["--parts", "rope,profile"], "The part profile says where a mask lies. Give its file: --mask FILE."),
        (
            ["--parts", "rope", "--maps", "0.1", "--output_path", "new.json"],
            "Maps of heads belong to the part",
        ),
        (["--mask", "nothing.safetensors"], "nothing.safetensors"),
        (["--texts", "x.txt"], "--task and --texts both name prompts"),
        (["--limit", "0"], "--limit must be at least 1 prompt, got 0"),
        (["--maps", "0.1"], "--maps are written to the JSON file"),
        (["--maps", "a.b", "--output_path", "new.json"], "--maps takes LAYER.HEAD"),
        (["--maps", "9.0", "--output_path", "new.json"], "There is no attention head 9.0"),
    ],
)
def test_bad_input(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*TASK, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()


def test_interaction_is_told_of_the_mask_and_of_nothing_else(mask_file, tmp_path, capsys, loaded):
    report = tmp_path / "together.json"
    arguments = [*TASK, "--parts", "interaction", "--mask", str(mask_file), "--output_path", str(report)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "joint / diagonal" in out and "RoPE spectrum" not in out
    found = json.loads(report.read_text())
    assert set(found) == {"model", "scan", "mask", "baseline", "masked", "change", "interaction"} - {
        "masked",
        "change",
    }
    stories = tasks.load("testbed", n=8, split="evaluation")
    mask, samples = SparseMask.load(mask_file), encode(loaded.tokenizer, stories, supervise="answer")
    expected = interaction(loaded.model, samples, mask, progress=False).to_dict()
    assert found["interaction"]["nnz"] == mask.nnz and found["interaction"]["samples"] == 8
    for part in ("first", "diagonal", "joint", "measured", "ratio"):
        assert found["interaction"][part] == pytest.approx(expected[part], rel=1e-4, abs=1e-7)


def test_interaction_without_a_mask_is_refused(capsys):
    assert main([*TASK, "--parts", "interaction"]) == 2
    assert "The part interaction says how far a mask's weights act together" in capsys.readouterr().err
