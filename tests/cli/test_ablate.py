from __future__ import annotations

import json
import shutil

import pytest
import torch

from tomfisher import SparseMask
from tomfisher.cli.main import main
from tomfisher.interventions import INTERVENTIONS, PARTS
from tomfisher.report import load
from tomfisher.results import Results, judge
from tomfisher.results.row import Row, point_key
from tomfisher.results.rule import PAPER, Rule
from tomfisher.studies.ablate_run import _mask


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    from tomfisher.studies import Experiment

    folder = tmp_path_factory.mktemp("study") / "run"
    settings = {"n_task": 10, "n_control": 5, "kappas": [0.05], "random_seeds": 1, "limit": 16}
    settings |= {"model": "testbed-llama", "task": "testbed", "control": "testbed", "device": "cpu"}
    settings |= {"output_path": str(folder), "perplexity_tokens": 200, "eval_dtype": "fp32"}
    Experiment(settings).run(progress=False)
    return folder


def test_it_prints_the_table_writes_the_files_and_says_what_is_left_out(run_folder, tmp_path, capsys):
    output = tmp_path / "out"
    command = ["ablate", str(run_folder), "--kappa", "0.05", "--only", "qk,mixer,off-sink:0.1"]
    command += ["--combine", "2", "--random_seeds", "0", "--limit", "8", "--output_path", str(output)]
    assert main(command) == 0
    out, err = capsys.readouterr()
    names = [line.split()[0] for line in out.splitlines()[2:6]]
    assert names == ["none", "qk", "off-sink:0.1", "qk+off-sink:0.1"]
    assert "left out mixer: Every layer of llama has attention" in err
    assert f"{output}/ablations.json" in out
    data = json.loads((output / "ablations.json").read_text())
    assert [point["state"] for point in data["points"]] == names[1:]
    assert set(data["left_out"]) == {"mixer", "qk+mixer", "mixer+off-sink:0.1"}
    assert data["baseline"]["conditions"]["all"]["n"] == 8
    assert (output / "ablations.csv").is_file()
    assert f"Holm's correction covers 3 comparisons: every ablation that is finished in {output}." in out
    assert f"tomfisher report {run_folder} shows what lies in {run_folder}/ablations" in out
    assert "are kept as they are" not in err and main(command) == 0
    assert "4 finished points of earlier calls are kept as they are" in capsys.readouterr().err


def test_without_names_a_set_over_all_kinds_goes_beside_the_run(run_folder, tmp_path, capsys):
    settings = ["--random_seeds", "0", "--limit", "4", "--perplexity_tokens", "50"]
    assert main(["ablate", str(run_folder), "--kappa", "0.05", *settings]) == 0
    out, err = capsys.readouterr()
    assert len(out.split("\n\n")[0].splitlines()) == 2 + 1 + 12 and "left out" not in err
    assert out.splitlines()[-1] == f"Report:  tomfisher report {run_folder}"
    assert set(load(run_folder).extras) == {"ablations"}
    shutil.copytree(run_folder, tmp_path / "other")
    mask = SparseMask.load(tmp_path / "other" / "masks" / "task-control-0.05.safetensors")
    for file in (tmp_path / "other" / "masks").iterdir():
        mask.random_like(1).save(file)
    assert load(tmp_path / "other").extras == {}
    assert (run_folder / "ablations" / "ablations.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "of-sink:0.1"], "Unknown ablation 'of-sink:0.1'. Did you mean 'off-sink'?"),
        (["--only", ","], "There is nothing to ablate"),
        (["--combine", "0", "--only", "qk"], "combine must be at least 1"),
        (["--kappa", "0.3"], "has no mask at kappa 0.3. Its kappas: 0.05"),
        (["--kappa", "0.05", "--mask", "x"], "both name a mask"),
        (["--mask", "nothing.safetensors"], "nothing.safetensors"),
        (["--kappa", "0.05", "--only", "off-sink:0.1@9"], "there is no layer or head 9"),
        (["--kappa", "0.05", "--limit", "0"], "limit must be at least 1"),
    ],
)
def test_bad_input(run_folder, tmp_path, capsys, arguments, message):
    assert main(["ablate", str(run_folder), "--output_path", str(tmp_path / "new"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new" / "ablations.json").exists()


def test_the_help_says_of_every_ablation_how_it_is_written_and_what_it_does(capsys):
    with pytest.raises(SystemExit):
        main(["ablate", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"ablations of weights: {', '.join(PARTS)} ablations of activations:" in said
    for intervention in INTERVENTIONS:
        assert f"{intervention.form} {intervention.__doc__.splitlines()[0]}" in said


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["ablate", str(tmp_path)]) == 2
    assert "is not a run folder: it has no config.yaml" in capsys.readouterr().err


def test_without_kappa_the_mask_is_the_one_that_the_verdict_names(tmp_path):
    """A study whose verdict is about a mask of another rule than the paper's, at a κ that both have."""
    rule, kappa = Rule("taylor", 0.2), 0.05
    states = [
        ("none", 0.0, 0.9, PAPER),
        ("task-control", kappa, 0.9, PAPER),
        ("task-control", kappa, 0.1, rule),
    ]
    states += [(mask, kappa, 0.9, rule) for mask in ("control-only", "random")]
    rows = [
        Row(
            **{"mask": mask, "kappa": k, "criterion": own.criterion, "control_kappa": own.control_kappa},
            **{"seed": 0 if mask == "random" else None, "nnz": 3, "perplexity": 10.0},
            **{"condition": "false-belief", "n": 160, "accuracy": accuracy, "p_vs_baseline": 1e-9},
            **{"ci95_low": accuracy - 0.05, "ci95_high": accuracy + 0.05},
        )
        for mask, k, accuracy, own in states
    ]
    results = Results(tuple(rows), {})
    assert judge(results).rule == rule
    results.save(tmp_path)
    (tmp_path / "masks").mkdir()
    for entry, own in enumerate((PAPER, rule)):
        mask = SparseMask({"w": torch.tensor([entry])}, {"w": (2, 2)})
        mask.save(tmp_path / "masks" / f"{point_key('task-control', kappa, rule=own)}.safetensors")
    assert _mask(tmp_path, None, None)[0]["w"].tolist() == [1]
    assert _mask(tmp_path, kappa, None)[0]["w"].tolist() == [0]
