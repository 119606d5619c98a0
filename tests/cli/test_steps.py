from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tomfisher import FisherDiagonal, SparseMask, perturb, top_fraction
from tomfisher.cli.main import main
from tomfisher.masks import criteria
from tomfisher.models import load_model
from tomfisher.results import Results
from tomfisher.results.row import states_of

pytestmark = pytest.mark.slow

STUDY = {
    "--model": "testbed-llama",
    "--task": "testbed",
    "--control": "testbed",
    "--n_task": "12",
    "--n_control": "12",
    "--control_length": "32",
    "--kappas": "3e-3",
    "--random_seeds": "1",
    "--limit": "32",
    "--perplexity_tokens": "512",
    "--perplexity_window": "64",
    "--eval_dtype": "fp32",
    "--device": "cpu",
}


def flags(**changes):
    named = {f"--{name}": value for name, value in changes.items()}
    return [word for pair in {**STUDY, **named}.items() for word in pair]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["run", *flags(output_path=str(folder))]) == 0
    return folder


@pytest.fixture
def mask_file(study, tmp_path):
    target = tmp_path / "m.safetensors"
    stores = ["--task_store", str(study / "fisher/task"), "--control_store", str(study / "fisher/control")]
    assert main(["mask", *stores, "--kappa", "3e-3", "--output_path", str(target)]) == 0
    return target


def test_run_prints_table_verdict_and_where_the_results_lie(study, quick_figures, capsys):
    assert main(["run", "--config", str(study / "config.yaml"), "--output_path", str(study)]) == 0
    out = capsys.readouterr().out
    assert "none (baseline)" in out and "task-control" in out and "random x1" in out
    assert "Baseline: false-belief accuracy" in out
    assert f"{study}/results.json" in out
    for name in ("config.yaml", "results.json", "results.csv", "verdict.txt"):
        assert (study / name).is_file()


def test_changed_setting_on_the_command_line_is_refused(study, capsys):
    assert main(["run", *flags(output_path=str(study), seed="1")]) == 2
    assert "seed: was 0, now 1" in capsys.readouterr().err


def test_mask_command_gives_the_mask_of_the_study(study, mask_file, capsys):
    assert SparseMask.load(mask_file) == SparseMask.load(study / "masks" / "task-control-0.003.safetensors")
    assert (
        main(["mask", "--random_like", str(mask_file), "--seed", "4", "--output_path", f"{mask_file}.r"]) == 0
    )
    assert SparseMask.load(f"{mask_file}.r") == SparseMask.load(mask_file).random_like(4)
    assert main(["mask", "--random_like", str(mask_file), "--output_path", f"{mask_file}.r"]) == 2
    assert "exists. Give another --output_path, or --overwrite" in capsys.readouterr().err


def test_mask_command_writes_several_kappas_from_one_reading(study, tmp_path, capsys):
    stores = ["--task_store", f"{study}/fisher/task", "--control_store", f"{study}/fisher/control"]
    target = tmp_path / "tom.safetensors"
    command = ["mask", *stores, "--kappas", "1e-3,3e-3", "--output_path", str(target)]
    assert main(command) == 0
    written = [tmp_path / "tom-0.001.safetensors", tmp_path / "tom-0.003.safetensors"]
    assert sorted(tmp_path.iterdir()) == written
    for kappa, file in zip(("1e-3", "3e-3"), written, strict=True):
        assert main(["mask", *stores, "--kappa", kappa, "--output_path", str(target), "--overwrite"]) == 0
        assert SparseMask.load(target) == SparseMask.load(file)
    written[0].unlink()
    capsys.readouterr()
    assert main(command) == 2
    assert "tom-0.003.safetensors exists" in capsys.readouterr().err and not written[0].exists()


def test_mask_command_leaves_more_to_the_control(study, tmp_path, capsys):
    stores = ["--task_store", str(study / "fisher/task"), "--control_store", str(study / "fisher/control")]
    made = [*stores, "--kappa", "0.03", "--output_path"]
    assert main(["mask", *made, str(tmp_path / "grid.safetensors"), "--control_kappa", "0.2"]) == 0
    assert main(["mask", *made, str(tmp_path / "ratio.safetensors"), "--criterion", "ratio"]) == 0
    task, control = (FisherDiagonal.load(study / "fisher" / which) for which in ("task", "control"))
    expected = top_fraction(task, 0.03) - top_fraction(control, 0.2)
    assert SparseMask.load(tmp_path / "grid.safetensors") == expected
    ratios = {name: criteria.ratio(task[name], control[name], 0.5) for name in task}
    assert SparseMask.load(tmp_path / "ratio.safetensors") == top_fraction(ratios, 0.03)
    assert main(["mask", *made, str(tmp_path / "x"), "--control_kappa", "0.1,0.2"]) == 2
    assert "one --control_kappa" in capsys.readouterr().err


@pytest.mark.parametrize("control", [True, False])
def test_one_empty_mask_among_several_writes_none(study, tmp_path, capsys, control):
    stores = ["--task_store", f"{study}/fisher/task"]
    stores += ["--control_store", f"{study}/fisher/control"] if control else []
    target = str(tmp_path / "tom.safetensors")
    assert main(["mask", *stores, "--kappas", "1e-9,3e-3", "--output_path", target]) == 2
    assert "kappa 1e-09" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--kappas", "0.1,1"], "every kappa must lie strictly between 0 and 1"),
        (["--kappas", "x"], "kappas must be numbers"),
        (["--kappas", ""], "--kappa or --kappas"),
        (["--kappas", "", "--random_like", "m.safetensors"], "leave out --kappa, --kappas and the stores"),
        (["--kappas", "0.1", "--random_like", "m.safetensors"], "leave out --kappa, --kappas and the stores"),
    ],
)
def test_kappas_that_are_none_are_refused(study, tmp_path, capsys, flags, said):
    stores = [] if "--random_like" in flags else ["--task_store", f"{study}/fisher/task"]
    assert main(["mask", *stores, *flags, "--output_path", str(tmp_path / "m.safetensors")]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_perturb_command_writes_the_perturbed_model(mask_file, tmp_path):
    target = tmp_path / "copy"
    arguments = [
        "--model",
        "testbed-llama",
        "--mask",
        str(mask_file),
        "--fill",
        "scale:0.5",
        "--device",
        "cpu",
    ]
    assert main(["perturb", *arguments, "--output_path", str(target)]) == 0
    loaded, copy = load_model("testbed-llama", device="cpu"), load_model(str(target), device="cpu")
    with perturb(loaded.model, SparseMask.load(mask_file), fill="scale:0.5"):
        for name, weight in loaded.model.named_parameters():
            assert torch.equal(weight, copy.model.get_parameter(name)), name
    record = json.loads((target / "perturbation.json").read_text())
    assert record["fill"] == "scale:0.5" and record["nnz"] == SparseMask.load(mask_file).nnz


def test_mask_of_another_model_is_refused_with_names(tmp_path, capsys):
    mask = SparseMask({"other.weight": torch.tensor([1])}, {"other.weight": (4, 4)})
    mask.save(tmp_path / "m.safetensors")
    arguments = ["--model", "testbed-llama", "--mask", str(tmp_path / "m.safetensors")]
    assert main(["perturb", *arguments, "--output_path", str(tmp_path / "copy")]) == 2
    assert "other.weight (4, 4) (not in the model)" in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


def test_stores_of_different_parameters_are_refused(study, tmp_path, capsys):
    task = FisherDiagonal.load(study / "fisher/task")
    first = next(iter(task))
    FisherDiagonal({first: task[first]}, 1, 1, {}, {}).save(tmp_path / "part")
    stores = ["--task_store", str(study / "fisher/task"), "--control_store", str(tmp_path / "part")]
    assert main(["mask", *stores, "--kappa", "1e-3", "--output_path", str(tmp_path / "m")]) == 2
    assert "hold different tensors" in capsys.readouterr().err


def test_evaluate_command_agrees_with_the_study(study, mask_file, tmp_path, capsys):
    report = tmp_path / "report.json"
    keys = ("model", "task", "control", "limit", "perplexity_tokens", "perplexity_window", "device")
    arguments = [word for key in keys for word in (f"--{key}", STUDY[f"--{key}"])]
    extra = ["--mask", str(mask_file), "--dtype", "fp32", "--output_path", str(report)]
    assert main(["evaluate", *arguments, *extra]) == 0
    results, said = Results.load(study), json.loads(report.read_text())
    points = (results.select(mask="none"), results.select(kappa=3e-3, mask="task-control"))
    for state, rows in zip(("baseline", "masked"), points, strict=True):
        (point,) = states_of(rows)
        assert said[state]["conditions"] == point["conditions"]
        assert said[state]["perplexity"] == point["perplexity"]
    out = capsys.readouterr().out
    first, _, header = out.splitlines()[:3]
    nnz = SparseMask.load(mask_file).nnz
    assert (
        first
        == f"testbed-llama on testbed, 32 questions; with the mask {mask_file}, {nnz:,} weights, fill mean"
    )
    assert header.split()[:3] == ["condition", "n", "accuracy"]
    assert "perplexity, masked:" in out and "not corrected" in out


def test_evaluate_says_which_task_was_taken_by_default(capsys):
    assert main(["evaluate", "--model", "testbed-llama", "--limit", "8", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("testbed-llama on testbed (the model's own task), ") and "mask" not in out
    assert "1.000" in out


def test_sweep_uses_the_stores_and_takes_other_kappas(study, quick_figures, tmp_path):
    stores = {"task_store": str(study / "fisher/task"), "control_store": str(study / "fisher/control")}
    wanted = flags(output_path=str(tmp_path / "s"), kappas="1e-3,3e-3", **stores)
    fisher_only = {"--n_task", "--n_control", "--control_length"}
    pairs = zip(wanted[::2], wanted[1::2], strict=True)
    assert main(["sweep", *(word for pair in pairs if pair[0] not in fisher_only for word in pair)]) == 0
    old, new = Results.load(study), Results.load(tmp_path / "s")
    assert new.at(3e-3, "task-control") == old.at(3e-3, "task-control")
    assert new.kappas == (1e-3, 3e-3)


def test_ls_of_a_store_counts_its_values(study, capsys):
    F = FisherDiagonal.load(study / "fisher/task")
    values = torch.cat([value.flatten() for value in F.values()])
    middle = values.median().item()
    assert main(["ls", str(study / "fisher/task"), "--above", f"0,{middle!r},1e30"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{study}/fisher/task: sums over {F.num_samples} samples"
    cells = {line.split()[0]: line.split()[1:] for line in lines[4:]}
    assert cells["all"] == [
        *(str(n) for n in (len(F), len(values), int((values == 0).sum()))),
        *(f"{x:.3g}" for x in (values.min().item(), values.max().item())),
        *(str(int((values > x).sum())) for x in (0, middle, 1e30)),
    ]
    q = [value for name, value in F.items() if name.endswith("q_proj.weight")]
    (name,) = [kind for kind in cells if kind.endswith("q_proj.weight")]
    assert cells[name][:2] == [str(len(q)), str(sum(value.numel() for value in q))]
    assert sum(int(row[6]) for kind, row in cells.items() if kind != "all") == int(cells["all"][6])


def test_ls_counts_values_of_stores_alone(study, capsys):
    for what in ([], ["tasks"], [str(study)]):
        assert main(["ls", *what, "--above", "1e-3"]) == 2
        assert (
            "--above counts the values of a Fisher store; give the store's folder" in capsys.readouterr().err
        )
    for text in ("x", "1,,2", "nan"):
        with pytest.raises(SystemExit):
            main(["ls", str(study / "fisher/task"), "--above", text])
        assert f"must be numbers such as 1e-6,1e-4, got {text!r}" in capsys.readouterr().err


def test_ls_of_a_run_folder_says_how_far_it_got(study, tmp_path, capsys):
    assert main(["ls", str(study)]) == 0
    out = capsys.readouterr().out
    assert "4 of 4 measured" in out and "fisher/task, fisher/control" in out and "task-control" in out
    fresh = tmp_path / "begun"
    fresh.mkdir()
    (fresh / "config.yaml").write_text((study / "config.yaml").read_text())
    assert main(["ls", str(fresh)]) == 0
    assert "0 of 4 measured" in capsys.readouterr().out


def test_ls_lists_everything_by_default(capsys):
    assert main(["ls"]) == 0
    out = capsys.readouterr().out
    for word in (
        "false-belief",
        "smollm2-135m",
        "testbed-llama",
        "decoder-linear",
        "scale:FACTOR",
        "demo-testbed",
    ):
        assert f"  {word} " in out


def test_unknown_task_is_refused_with_the_known_ones(capsys):
    assert main(["evaluate", "--model", "testbed-llama", "--task", "irony", "--device", "cpu"]) == 2
    assert "Unknown task 'irony'" in capsys.readouterr().err


def test_full_disk_loses_nothing_that_was_finished(study, quick_figures, tmp_path):
    """A file-size limit stands in for the full disk: the store of 3 MB does not fit."""
    import resource
    import subprocess
    import sys

    folder = tmp_path / "full"
    arguments = ["run", *flags(output_path=str(folder))]
    code = f"import sys; from tomfisher.cli.main import main; sys.exit(main({arguments!r}))"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "disk is full" in done.stderr and "Traceback" not in done.stderr
    assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp") or p.name == "task"]
    assert main(arguments) == 0
    again, whole = (json.loads((Path(f) / "results.json").read_text()) for f in (folder, study))
    assert again["points"] == whole["points"]


def test_plan_adds_up_both_fisher_diagonals_and_the_sweep(capsys):
    assert main(["plan", *flags()]) == 0
    out = capsys.readouterr().out
    assert "task Fisher diagonal" in out and "control Fisher diagonal" in out
    assert out.count("captured: 28 tensors") == 2 and "model.layers.*.self_attn.q_proj.weight (4)" in out
    assert "points      4, with 32 questions and 512 tokens each" in out
    assert "in all" in out


def test_plan_leaves_out_what_a_store_already_holds(study, capsys):
    assert main(["plan", *flags(task_store=str(study / "fisher/task"))]) == 0
    out = capsys.readouterr().out
    assert "task Fisher diagonal" not in out and "control Fisher diagonal" in out


def test_an_implementation_that_cannot_run_here_is_one_line(tmp_path, capsys):
    arguments = ["--model", "testbed-llama", "--task", "testbed", "--n_task", "2", "--device", "cpu"]
    assert main(["fisher", *arguments, "--impl", "triton", "--output_path", str(tmp_path / "s")]) == 2
    assert "needs CUDA tensors (got cpu)" in capsys.readouterr().err
