from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest

from tomfisher import testbed
from tomfisher.cli.main import main
from tomfisher.evaluate.statistics import wilson_interval
from tomfisher.results import equal_kappa
from tomfisher.results.analysis import read_analysis
from tomfisher.results.architecture_folder import save
from tomfisher.results.architecture_table import render
from tomfisher.results.architectures import outcome
from tomfisher.results.results import Results
from tomfisher.results.row import rows_of
from tomfisher.studies.architectures import configs, run_architectures
from tomfisher.studies.diagonals import Diagonals
from tomfisher.studies.experiment import Experiment

pytestmark = pytest.mark.slow

N = 60
NAMES = (
    "false-belief",
    "contents/false-belief",
    "transfer/false-belief",
    "second-order/false-belief",
    "false-belief/reality",
    "second-order/false-belief/first-order",
)
TINY = {
    "n_task": 6,
    "n_control": 6,
    "control_length": 16,
    "kappas": [0.05],
    "random_seeds": 1,
    "limit": 48,
    "perplexity_tokens": 256,
    "perplexity_window": 64,
    "analysis_prompts": 4,
    "device": "cpu",
}


def point(mask, kappa, accuracies, p=None, perplexity=2.0, seed=None):
    conditions = {}
    for name, accuracy in zip(NAMES, accuracies, strict=True):
        low, high = wilson_interval(round(accuracy * N), N)
        conditions[name] = {"n": N, "accuracy": accuracy, "ci95": [low, high], "p_vs_baseline": p}
    state = {"kappa": kappa, "mask": mask, "seed": seed, "nnz": 100, "perplexity": perplexity}
    return rows_of({**state, "conditions": conditions})


def study(hits, ps):
    """One κ per entry: 0.01, 0.02, ..."""
    ones = (1.0,) * len(NAMES)
    rows = point("none", 0.0, ones)
    for i, (hit, p) in enumerate(zip(hits, ps, strict=True)):
        kappa = (i + 1) / 100
        rows += [
            *point("task-control", kappa, (hit, hit, hit, hit / 2, 1.0, 0.95), p, 2.06),
            *point("control-only", kappa, (0.95, *ones[1:]), 0.5, 3.0),
            *point("random", kappa, (0.98, *ones[1:]), 1.0, seed=0),
            *point("random", kappa, ones, 1.0, seed=1),
        ]
    provenance = {"evaluation": {"chance": {"false-belief": 0.5}}}
    return Results(tuple(rows), provenance)


def spectrum(scale):
    """Two layers, two query heads, one key head, two pairs; pair 1 dominates everywhere but in k of layer 1."""
    norms = [
        {"q": [[1.0, 4.0], [1.0, 8.0]], "k": [[1.0, 2.0]]},
        {"q": [[1.0, 4.0], [1.0, 8.0]], "k": [[9.0, 2.0]]},
    ]
    layers = [
        {
            part: {
                "norm": [[value * scale[pair] for pair, value in enumerate(head)] for head in heads],
                "dominant": [head.index(max(head)) for head in heads],
            }
            for part, heads in layer.items()
        }
        for layer in norms
    ]
    return {"layers": layers}


def sinks(*masses):
    return {"layers": [{"first_mass": list(layer)} for layer in masses]}


INSIDE = {
    "kappa": 0.02,
    "baseline": {"rope": spectrum((1, 1)), "sinks": sinks((0.2, 0.4), (0.6, 0.8))},
    "states": {
        "task-control": {"rope": spectrum((1, 0.5)), "sinks": sinks((0.1, 0.1), (0.3, 0.3))},
        "random": {"rope": spectrum((1.1, 1)), "sinks": sinks((0.2, 0.4), (0.6, 0.4))},
    },
    "randoms": [
        {"seed": 0, "rope": {"dominant": 0.1 / 6}, "sinks": {"first_mass": 0.4}},
        {"seed": 1, "rope": {"dominant": -0.02}, "sinks": {"first_mass": 0.55}},
        {"seed": 2, "rope": {"dominant": 0.0}, "sinks": {"first_mass": None}},
    ],
    "profile": {
        "groups": [
            {"group": "qk", "share": 0.4, "weight_share": 0.25},
            {"group": "mlp", "share": 0.6, "weight_share": 0.75},
        ]
    },
    "unavailable": {},
}
BARE = {
    "kappa": 0.01,
    "baseline": {},
    "states": {"task-control": {}, "random": {}},
    "profile": {"groups": [{"group": "mixer", "share": 1.0, "weight_share": 1.0}]},
    "unavailable": {"rope": "mamba has no rotary embedding.", "sinks": "mamba has no attention layer."},
}


@pytest.fixture
def outcomes():
    return [
        outcome("llama", study((0.9, 0.3), (0.03, 1e-9)), INSIDE),
        outcome("mamba", study((1.0, 1.0), (1.0, 1.0)), BARE),
    ]


def test_an_outcome_gathers_effect_controls_and_what_happened_inside(outcomes):
    llama, _ = outcomes
    assert llama.found and llama.kappa == 0.02 and llama.positions == "RoPE" and llama.after().nnz == 100
    assert llama.p() == pytest.approx(2e-9)
    assert llama.before().accuracy == 1.0 and llama.after().accuracy == 0.3
    assert llama.after().ci95 == wilson_interval(18, N)
    assert llama.control().accuracy == 0.95
    assert [row.accuracy for row in llama.randoms()] == [0.98, 1.0]
    assert llama.after("second-order/false-belief").accuracy == 0.15
    assert llama.rise(llama.after()) == pytest.approx(0.03)
    assert llama.rise(llama.control()) == pytest.approx(0.5)
    assert llama.where == {
        "qk": {"share": 0.4, "weight_share": 0.25},
        "mlp": {"share": 0.6, "weight_share": 0.75},
    }
    # five of the six heads lose half of their dominant pair; the sixth is dominated by the other pair
    assert llama.dominant_norm == pytest.approx({"task-control": -2.5 / 6, "random": 0.1 / 6})
    assert llama.first_mass == pytest.approx({"before": 0.5, "task-control": 0.2, "random": 0.4})
    assert llama.random_dominant_norms == (0.1 / 6, -0.02, 0.0) and llama.random_first_masses == (0.4, 0.55)


def test_what_an_architecture_lacks_is_a_dash_with_the_reason_below(outcomes):
    mamba = outcomes[1]
    assert not mamba.found and mamba.kappa == 0.01
    assert mamba.dominant_norm is None and mamba.first_mass is None
    assert mamba.random_dominant_norms == mamba.random_first_masses == ()
    text = render(outcomes)
    assert "dominant rotary pairs -41.7% -" in " ".join(text.split())
    assert "- mamba has no rotary embedding." in text and "- mamba has no attention layer." in text


def test_the_table_has_one_column_per_architecture(outcomes):
    lines = render(outcomes).splitlines()
    assert lines[0].split() == ["Llama", "Mamba"]
    text = "\n".join(" ".join(line.split()) for line in lines)
    for row in (
        "positions RoPE none",
        "effect found yes no",
        "kappa 0.02 0.01",
        "false-belief before 1.000 1.000",
        "false-belief after 0.300 1.000",
        "p (sign flip, Holm) 2e-09 1",
        "random masks 0.980..1.000 0.980..1.000",
        "control-only mask 0.950 0.950",
        "control-only mask 0.950 0.950\n95 % interval 0.86..0.98 0.86..0.98",
        "second-order 1.000 > 0.150 1.000 > 0.500\n95 % intervals 0.94..1.00 > 0.08..0.26 0.94..1.00 > 0.38..0.62",
        "random masks +0.0%..+0.0% +0.0%..+0.0%",
        "second-order (first-order) 1.000 > 0.950 1.000 > 0.950",
        "dominant rotary pairs -41.7% -\nrandom masks -2.0%..+1.7% -",
        "attention to first token 0.500 > 0.200 -\nrandom masks 0.400..0.550 -",
        "perplexity +3.0% +3.0%",
        "control-only mask +50.0% +50.0%",
        "mask in q and k (of weights) 40% (25%) -",
        "mask in mixer (of weights) - 100% (100%)",
    ):
        assert row in text


def test_every_architecture_stands_at_every_common_kappa(outcomes):
    text = "\n".join(" ".join(line.split()) for line in render(outcomes).splitlines())
    assert "kappa Llama Mamba" in text
    assert "0.01 0.900 (0.80..0.95) +3.0% 1.000 (0.94..1.00) +3.0%" in text
    assert "0.02 0.300 (0.20..0.43) +3.0% 1.000 (0.94..1.00) +3.0%" in text
    llama, mamba = outcomes
    assert llama.after(kappa=0.02) == llama.after() and llama.p(0.02) == llama.p()
    assert [llama.rise(row) for row in llama.randoms(kappa=0.02)] == [0.0, 0.0]
    rows = tuple(
        replace(row, kappa=0.03) if row.kappa else row for row in mamba.results.rows if row.kappa != 0.02
    )
    other = replace(mamba, kappa=0.03, results=replace(mamba.results, rows=rows))
    assert equal_kappa.common_kappas([outcomes[0], other]) == []
    assert "No kappa is common" in render([outcomes[0], other])


def test_an_order_is_told_only_where_intervals_at_one_kappa_lie_apart(outcomes):
    found, order, seed = equal_kappa.sentences(outcomes)
    assert found.startswith("The effect was found in Llama (kappa = 0.02); not found in Mamba.")
    assert order.startswith(
        "At kappa = 0.02 the accuracy under the task's mask is lower in Llama (0.300) than in Mamba (95 %"
    )
    assert "one seed" in seed
    near = [outcomes[0], outcome("mamba", study((0.85, 0.4), (0.03, 1e-9)), BARE | {"kappa": 0.02})]
    found, order, _ = equal_kappa.sentences(near)
    assert "found in Llama (kappa = 0.02), Mamba (kappa = 0.02)." in found
    assert "nothing is said about which of them" in order


def test_files_hold_what_the_table_holds(outcomes, tmp_path):
    save(tmp_path, outcomes)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "architectures.csv",
        "architectures.json",
        "architectures.txt",
    ]
    stored = json.loads((tmp_path / "architectures.json").read_text())["architectures"]
    assert [entry["architecture"] for entry in stored] == ["llama", "mamba"]
    kept = [row for state in stored[0]["states"] for row in rows_of(state)]
    assert kept == list(outcomes[0].results.rows) and stored[1]["first_mass"] is None
    assert (tmp_path / "architectures.txt").read_text() == f"{render(outcomes)}\n"
    rows = list(csv.DictReader((tmp_path / "architectures.csv").open()))
    assert len(rows) == 2 * len(NAMES) * 5 + 2 * 4
    found = [row for row in rows if row["condition"] == "false-belief" and row["state"] == "after"]
    assert [(row["architecture"], row["kappa"], row["accuracy"]) for row in found] == [
        ("llama", "0.02", "0.3"),
        ("llama", "0.01", "0.9"),
        ("mamba", "0.01", "1.0"),
        ("mamba", "0.02", "1.0"),
    ]
    assert float(found[0]["ci95_low"]) == pytest.approx(wilson_interval(18, N)[0])


def test_without_an_analysis_the_effect_is_still_told():
    found = outcome("mpt", study((0.9, 0.3), (0.03, 1e-9)))
    assert found.found and found.kappa == 0.02 and found.where is None
    assert "analysis_prompts" in render([found])


def test_settings_reach_all_five_studies_and_their_folders(tmp_path):
    found = configs({"output_path": str(tmp_path), "limit": "96"})
    assert list(found) == list(testbed.ARCHITECTURES)
    for name, config in found.items():
        assert config.model == f"testbed2-{name}" and config.limit == 96
        assert config.output_path == str(tmp_path / name)
    assert {config.task for config in found.values()} == {"testbed2"}


def test_a_model_beside_the_preset_is_refused(capsys):
    assert main(["run", "--preset", "architectures", "--model", "testbed-llama"]) == 2
    assert "leave the model out" in capsys.readouterr().err


def test_a_damaged_analysis_is_named(tmp_path):
    assert read_analysis(tmp_path) is None
    (tmp_path / "analysis.json").write_text("{")
    with pytest.raises(ValueError, match=r"analysis\.json is damaged"):
        read_analysis(tmp_path)


@pytest.mark.slow
def test_the_preset_runs_resumes_and_gives_the_same_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(testbed, "ARCHITECTURES", ("llama", "mamba"))
    given = {**TINY, "output_path": str(tmp_path / "runs")}
    folder, first = run_architectures(given, progress=False)
    assert folder == tmp_path / "runs"
    assert [found.architecture for found in first] == ["llama", "mamba"]
    llama, mamba = first
    assert llama.dominant_norm and llama.first_mass and {"qk", "vo", "mlp"} <= llama.where.keys()
    assert mamba.dominant_norm is None and mamba.first_mass is None and set(mamba.where) == {"mixer"}
    assert llama.before("second-order/false-belief").n == 2
    monkeypatch.setattr(Experiment, "_measure", lambda *a: pytest.fail("measured again"))
    monkeypatch.setattr(Diagonals, "_compute", lambda *a: pytest.fail("took the Fisher again"))
    (folder / "architectures.json").unlink()
    _, again = run_architectures(given, progress=False)
    measured = [
        [(found.kappa, found.results.rows, found.first_mass) for found in table] for table in (first, again)
    ]
    assert measured[0] == measured[1]
    assert (folder / "architectures.json").is_file()
    flags = [text for key, value in TINY.items() for text in (f"--{key}", str(value).strip("[]"))]
    assert main(["run", "--preset", "architectures", "--output_path", str(tmp_path / "runs"), *flags]) == 0
    assert render(first) in capsys.readouterr().out
    with pytest.raises(ValueError, match="other settings"):
        run_architectures({**given, "limit": 96}, progress=False)


def test_every_command_uses_the_scan_of_the_model_and_records_it(tmp_path, monkeypatch):
    from transformers.models.mamba import modeling_mamba

    from tomfisher.runtime import scan
    from tomfisher.studies.ablate_run import ablate_run

    original, calls, ours = modeling_mamba.mamba_selective_scan, [], scan.selective_scan
    monkeypatch.setattr(scan, "selective_scan", lambda *a, **b: calls.append(1) or ours(*a, **b))

    def used():
        assert modeling_mamba.mamba_selective_scan is original
        count = len(calls)
        calls.clear()
        return count > 0

    run = tmp_path / "run"
    few = {**TINY, "n_task": 2, "n_control": 2, "random_seeds": 0, "limit": 8, "analysis_prompts": 0}
    settings = {
        **few,
        "model": "testbed2-mamba",
        "task": "testbed2",
        "control": "testbed",
        "eval_dtype": "fp32",
    }
    results = Experiment({**settings, "output_path": str(run)}).run(progress=False)
    assert used() and results.provenance["scan"] == "linear"
    monkeypatch.setattr(Experiment, "_measure", lambda *a: pytest.fail("measured again"))
    assert (
        Experiment({**settings, "output_path": str(run)}).run(progress=False).provenance["scan"] == "linear"
    )
    ablations = ablate_run(run, ["full"], kappa=0.05, progress=False)
    assert used() and ablations.provenance["scan"] == "linear"
    command = [
        "finetune",
        str(run),
        "--kappa",
        "0.05",
        "--steps",
        "1",
        "--learning_rates",
        "1e-3",
        "--no_lora",
    ]
    command += ["--n_train", "2", "--n_validation", "2", "--random_masks", "0"]
    assert main([*command, "--output_path", str(run / "finetune")]) == 0
    assert used()
    assert json.loads((run / "finetune" / "finetune.json").read_text())["provenance"]["scan"] == "linear"
    step = ["--model", "testbed2-mamba", "--task", "testbed2"]
    store, evaluation = tmp_path / "store", tmp_path / "evaluation.json"
    assert main(["fisher", *step, "--n_task", "2", "--output_path", str(store)]) == 0
    assert used()
    assert json.loads((store / "fisher.json").read_text())["scan"] == "linear"
    assert main(["evaluate", *step, "--limit", "2", "--output_path", str(evaluation)]) == 0
    assert used()
    assert json.loads(evaluation.read_text())["scan"] == "linear"
    assert main(["plan", *step, "--n_task", "2", "--n_control", "2", "--limit", "2"]) == 0
    assert used()


def test_the_scan_of_transformers_is_back_after_a_failure(tmp_path, monkeypatch):
    from transformers.models.mamba import modeling_mamba

    original = modeling_mamba.mamba_selective_scan

    def fail(self, *args, **kwargs):
        assert modeling_mamba.mamba_selective_scan is not original
        return 1 / 0

    monkeypatch.setattr(modeling_mamba.MambaForCausalLM, "forward", fail)
    settings = {**TINY, "model": "testbed2-mamba", "output_path": str(tmp_path / "run")}
    with pytest.raises(ZeroDivisionError):
        Experiment({**settings, "task": "testbed2", "control": "testbed"}).run(progress=False)
    assert modeling_mamba.mamba_selective_scan is original
