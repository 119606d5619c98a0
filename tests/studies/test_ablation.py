"""A study's ablations: every number is what a direct computation gives; the folder resumes and refuses."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers

from tomfisher import SparseMask, evaluate, perturb, tasks
from tomfisher.evaluate.execute import can_pack
from tomfisher.evaluate.statistics import holm
from tomfisher.interventions import (
    Ablation,
    OffSink,
    ScaleBand,
    intervene,
    measure_internals,
    parse_all,
    restrict,
)
from tomfisher.models import describe, load_model
from tomfisher.models.families import UnsupportedModel
from tomfisher.results.ablations import ablation_table, interventions
from tomfisher.results.results import Results
from tomfisher.studies import Experiment
from tomfisher.studies.ablate_run import ablate_run
from tomfisher.studies.ablation import ablate
from tomfisher.studies.measure import Measure

pytestmark = pytest.mark.slow

NAMES = ["full", "qk", "other-rows", "scale-band:dominant:0.2", "off-sink:0.1", "qk+off-sink:0.1"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small finished study on the testbed model: its folder and its results."""
    folder = tmp_path_factory.mktemp("study") / "run"
    settings = {
        "model": "testbed-llama",
        "task": "testbed",
        "control": "testbed",
        "output_path": str(folder),
        "n_task": 30,
        "n_control": 20,
        "kappas": [0.03],
        "random_seeds": 2,
        "limit": 64,
        "perplexity_tokens": 600,
        "perplexity_window": 128,
        "eval_dtype": "fp32",
        "device": "cpu",
    }
    return SimpleNamespace(folder=folder, results=Experiment(settings).run(progress=False))


@pytest.fixture(scope="module")
def done(study, tmp_path_factory):
    output = tmp_path_factory.mktemp("ablations") / "out"
    found = ablate_run(study.folder, NAMES, kappa=0.03, output_path=output, progress=False)
    loaded = load_model("testbed-llama", dtype="fp32", device="cpu")
    stories = tasks.load("testbed", n=64, split="evaluation")
    prompts = list(dict.fromkeys(s.prompt for s in tasks.load("testbed", n=30, split="fisher")))
    ids = [loaded.tokenizer(text)["input_ids"] for text in prompts]
    return SimpleNamespace(
        found=found,
        output=output,
        model=loaded.model,
        mask=SparseMask.load(study.folder / "masks" / "task-control-0.03.safetensors"),
        internals=measure_internals(loaded.model, ids[:64]),
        score=lambda: evaluate.score(loaded.model, loaded.tokenizer, stories, progress=False),
    )


def row(found, name, condition=None):
    (one,) = (r for r in interventions(found, condition) if r.state == name)
    return one


def controls(found, name, condition=None):
    return found.select(state=name, control=True, condition=condition or found.headline)


def states(found):
    """Name and seed of every state, the untouched one left out."""
    return list(dict.fromkeys((r.state, r.seed) for r in found.rows if r.state))


def bare(rows):
    """Rows without what other ablations change: the corrected p."""
    return [replace(r, p_holm=None) for r in rows]


def test_baseline_full_mask_and_its_random_masks_are_those_of_the_study(study, done):
    def same(mine, theirs):
        nameless = {"state": None, "interventions": None, "control": None, "p_holm": None}
        assert [replace(r, **nameless) for r in mine] == list(theirs)

    same(done.found.select(state=""), study.results.select(mask="none"))
    same(
        done.found.select(state="full", control=False),
        study.results.select(kappa=0.03, mask="task-control"),
    )
    same(done.found.select(state="full", control=True), study.results.select(kappa=0.03, mask="random"))


def test_no_point_packs_questions_because_interventions_cannot(done):
    saved = [json.loads(file.read_text()) for file in (done.output / "points").glob("*.json")]
    assert len(saved) == 1 + len(states(done.found))
    assert all(point["scores"]["shared_prefix"] and not point["scores"]["packed"] for point in saved)
    assert can_pack(done.model)  # it is the ablations that do not ask for it


def test_every_point_is_recomputed_by_hand(done):
    base = done.score()
    region = {
        name: restrict(done.mask, describe(done.model), name, done.internals.spectrum) for name in NAMES[1:3]
    }
    sink = OffSink(0.1)
    by_hand = {
        "qk": (region["qk"], ()),
        "other-rows": (region["other-rows"], ()),
        "scale-band:dominant:0.2": (None, (ScaleBand("dominant", 0.2),)),
        "off-sink:0.1": (None, (sink,)),
        "qk+off-sink:0.1": (region["qk"], (sink,)),
    }
    for name, (mask, changes) in by_hand.items():
        mask = SparseMask({}, done.mask.shapes) if mask is None else mask
        with perturb(done.model, mask), intervene(done.model, *changes, internals=done.internals):
            scores = done.score()
        found = row(done.found, name, "all")
        assert found.nnz == mask.nnz
        assert found.accuracy == scores.by_group()["all"].accuracy
        assert found.p_vs_baseline == evaluate.compare(base, scores)["all"]
    assert len({r.perplexity for r in done.found.rows}) == 1 + 3 * len(NAMES)
    for seed, control in enumerate(controls(done.found, "qk", "all")):
        with perturb(done.model, region["qk"].random_like(seed)):
            assert control.accuracy == done.score().by_group()["all"].accuracy
        assert control.nnz == region["qk"].nnz


def test_points_say_what_they_are(done):
    found = done.found
    assert states(found) == [(name, seed) for name in NAMES for seed in (None, 0, 1)]
    labels = {r.state: r.mask for r in interventions(found)}
    assert labels == dict(zip(NAMES, ["task-control"] * 3 + ["none"] * 2 + ["task-control"], strict=True))
    assert {r.mask for r in found.rows if r.control} == {"random"}
    assert row(found, "qk+off-sink:0.1").interventions == ("qk", "off-sink:0.1")
    assert row(found, "off-sink:0.1").kappa == 0 and row(found, "qk").kappa == 0.03


def test_p_values_are_corrected_over_the_interventions_alone(done):
    for condition in ("false-belief", "all"):
        rows = interventions(done.found, condition)
        assert [r.p_holm for r in rows] == holm([r.p_vs_baseline for r in rows])
    tested = {r for condition in ("false-belief", "all") for r in interventions(done.found, condition)}
    assert all(r.p_holm is None for r in done.found.rows if r not in tested)


def test_files_hold_the_same_points(done):
    loaded = Results.load(done.output, "ablations")
    assert loaded.rows == done.found.rows
    data = json.loads((done.output / "ablations.json").read_text())
    assert data["provenance"]["model"]["source"] == "testbed-llama"
    with (done.output / "ablations.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [line["state"] for line in rows] == [r.state for r in loaded.rows]
    assert [line["condition"] for line in rows] == [r.condition for r in loaded.rows]
    assert [float(line["accuracy"]) for line in rows] == [r.accuracy for r in loaded.rows]
    assert not list(done.output.rglob("*.tmp"))


def test_table_has_a_line_for_each_intervention_and_the_range_of_its_controls(done):
    lines = ablation_table(done.found).text().splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["none", *NAMES]
    cells = lines[3].split()
    full, beside = row(done.found, "full"), controls(done.found, "full")
    assert cells[1] == str(full.nnz) and cells[2] == f"{full.accuracy:.3f}"
    low, high = (f"{f(c.accuracy for c in beside):.3f}" for f in (min, max))
    assert cells[-2] == (low if low == high else f"{low}..{high}")
    assert lines[0].rpartition("2 controls")[2].split() == ["their", "rise"]
    alone = ablation_table(Results(tuple(r for r in done.found.rows if not r.control))).text()
    assert "controls" not in alone and len(alone.splitlines()) == len(lines)


def test_the_model_is_as_before_and_finished_points_are_not_measured_again(
    study, done, tmp_path, monkeypatch
):
    output = tmp_path / "copy"
    shutil.copytree(done.output, output)
    lost = output / "points" / "off-sink_0.1-seed1.json"
    lost.unlink()
    (output / "points" / "qk.json").write_text("{")
    calls = []
    whole = Measure.__call__
    monkeypatch.setattr(Measure, "__call__", lambda self: calls.append(1) or whole(self))
    with pytest.warns(UserWarning, match=r"qk.json is damaged"):
        again = ablate_run(study.folder, NAMES, kappa=0.03, output_path=output, progress=False)
    assert again.rows == done.found.rows and len(calls) == 2
    fewer = ablate_run(study.folder, ["off-sink:0.1"], kappa=0.03, output_path=output, progress=False)
    assert len(calls) == 2 and fewer.rows == done.found.rows


def test_a_second_call_adds_to_the_first_and_p_is_corrected_over_both(study, tmp_path):
    options = {"kappa": 0.03, "output_path": tmp_path / "out", "progress": False}
    options["settings"] = {"random_seeds": 1, "limit": 16, "perplexity_tokens": 50}
    first = ablate_run(study.folder, ["qk", "mixer"], **options)
    second = ablate_run(study.folder, ["full", "off-sink:0.1"], **options)
    names = ["qk", "full", "off-sink:0.1"]
    assert states(second) == [(name, seed) for name in names for seed in (None, 0)]
    assert bare(second.rows[: len(first.rows)]) == bare(first.rows)
    rows = interventions(second)
    assert [r.p_holm for r in rows] == holm([r.p_vs_baseline for r in rows]) and len(rows) == 3
    stored = Results.load(tmp_path / "out", "ablations")
    assert stored.rows == second.rows and list(stored.left_out) == ["mixer"]
    (tmp_path / "out" / "ablations.json").unlink()  # as after a kill: the points are there
    third = ablate_run(study.folder, ["full"], **options)
    assert {r.state for r in interventions(third)} == set(names) and interventions(third)[0].state == "full"


def test_a_folder_of_an_earlier_version_goes_on_and_its_file_is_read(study, done, tmp_path, monkeypatch):
    output = tmp_path / "old"
    shutil.copytree(done.output, output)

    def earlier(point):
        point["name"] = point.pop("state")
        for score in point["conditions"].values():
            score.pop("p_holm", None)
        return point

    data = json.loads((output / "ablations.json").read_text())
    data["baseline"], data["points"] = earlier(data["baseline"]), list(map(earlier, data["points"]))
    data |= {"left_out": {"mixer": "Every layer has attention."}, "comparisons": 6, "holm": {"all": {}}}
    (output / "ablations.json").write_text(json.dumps(data))
    for file in (output / "points").iterdir():
        point = json.loads(file.read_text())
        file.write_text(json.dumps(point | {"point": earlier(point["point"])}))
    assert bare(Results.load(output, "ablations").rows) == bare(done.found.rows)
    monkeypatch.setattr(Measure, "__call__", None)  # nothing is measured
    again = ablate_run(study.folder, NAMES[:2], kappa=0.03, output_path=output, progress=False)
    assert again.rows == done.found.rows and list(again.left_out) == ["mixer"]


def test_a_folder_of_other_ablations_is_refused_unless_overwritten(study, done, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(done.output, output)
    half = done.mask & done.mask.random_like(5)
    half.save(tmp_path / "half.safetensors")
    options = {"output_path": output, "progress": False, "settings": {"random_seeds": 0}}
    with pytest.raises(ValueError, match=r"mask.sha256") as caught:
        ablate_run(study.folder, ["full"], mask=tmp_path / "half.safetensors", **options)
    assert "--overwrite" in str(caught.value)
    found = ablate_run(study.folder, ["full"], mask=tmp_path / "half.safetensors", overwrite=True, **options)
    assert (row(found, "full").nnz, row(found, "full").mask) == (half.nnz, "file")
    assert [file.stem for file in sorted((output / "points").iterdir())] == ["baseline", "full"]
    with pytest.raises(ValueError, match=r"settings.limit: was 64, now 32"):
        ablate_run(
            study.folder, mask=tmp_path / "half.safetensors", output_path=output, settings={"limit": 32}
        )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("x")
    with pytest.raises(ValueError, match=r"is not a folder of ablations: it holds precious.txt"):
        ablate_run(study.folder, kappa=0.03, output_path=tmp_path / "other", overwrite=True)
    assert (tmp_path / "other" / "precious.txt").read_text() == "x"


def test_an_attempt_without_any_result_may_be_corrected(study, tmp_path):
    options = {"kappa": 0.03, "output_path": tmp_path / "out", "progress": False}
    small = {"random_seeds": 0, "limit": 4, "perplexity_tokens": 50}
    with pytest.raises(ValueError, match="no layer or head 9"):
        ablate_run(study.folder, ["scale-key:0@9"], settings={**small, "limit": 8}, **options)
    (tmp_path / "out" / ".ablations.json.0.tmp").write_text("left by a kill")
    found = ablate_run(study.folder, ["scale-key:0@3"], settings=small, **options)
    assert found.baseline("all").n == 4
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {".lock", "inputs.json", "points", "ablations.json", "ablations.csv"}


def test_inputs_that_are_not_there(study, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a run folder: it has no config.yaml"):
        ablate_run(tmp_path)
    with pytest.raises(ValueError, match=r"has no mask at kappa 0.5. Its kappas: 0.03"):
        ablate_run(study.folder, kappa=0.5)
    with pytest.raises(ValueError, match="both name a mask"):
        ablate_run(study.folder, kappa=0.03, mask="m.safetensors")
    shutil.copytree(study.folder, tmp_path / "run", ignore=shutil.ignore_patterns("fisher", "ablations"))
    data = json.loads((tmp_path / "run" / "results.json").read_text())
    data["points"] = [p for p in data["points"] if p["mask"] != "random"]
    (tmp_path / "run" / "results.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"names no kappa. Give --kappa, one of 0.03"):
        ablate_run(tmp_path / "run")


def tiny(config):
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def fake_measure(score):
    return lambda: (score(), SimpleNamespace(token=1.0, word=2.0))


def test_what_cannot_be_done_is_left_out_with_the_reason_and_the_rest_is_done(tiny_config):
    names = ["full", "qk", "mlp", "mixer", "dominant-rows", "off-sink:0.1", "full+off-sink:0.1"]
    scores = evaluate.Scores((evaluate.Record("a", "g", "c", "x", "belief", 1.0, "p"),))
    for family, kept in (("mamba", ["full", "mixer"]), ("mpt", ["full", "qk", "mlp"])):
        model = tiny(tiny_config(family))
        weights = {n: p for n, p in model.named_parameters() if p.ndim == 2}
        mask = SparseMask(
            {n: torch.tensor([0]) for n in weights}, {n: tuple(p.shape) for n, p in weights.items()}
        )
        internals = measure_internals(model, [list(range(3, 12))])
        found = ablate(
            model,
            mask,
            fake_measure(lambda: scores),
            parse_all(names),
            internals,
            random_seeds=1,
            progress=False,
        )
        assert [r.state for r in interventions(found)] == kept
        assert set(found.left_out) == set(names) - set(kept)
        assert all(family in reason for reason in found.left_out.values())
        with pytest.raises(
            UnsupportedModel, match=r"None of the ablations can be done.*\n  full: The mask has no"
        ):
            ablate(model, mask - mask, fake_measure(lambda: scores), parse_all(["full"]), internals)


def test_an_unknown_architecture_still_has_its_whole_mask(tiny_config):
    options = {
        "vocab_size": 53,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "head_dim": 8,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = tiny(transformers.Gemma3TextConfig(**options, **heads, use_bidirectional_attention=True))
    name = next(n for n, p in model.named_parameters() if p.ndim == 2)
    mask = SparseMask({name: torch.tensor([1, 5])}, {name: tuple(model.get_parameter(name).shape)})
    scores = evaluate.Scores((evaluate.Record("a", "g", "c", "x", "belief", 1.0, "p"),))
    found = ablate(
        model, mask, fake_measure(lambda: scores), parse_all(["full", "qk", "off-sink:0.1"]), progress=False
    )
    assert states(found) == [("full", seed) for seed in (None, *range(5))]
    assert "not known" in found.left_out["qk"] and "gemma3_text" in found.left_out["off-sink:0.1"]


def test_two_ablations_of_one_name_are_refused(done):
    two = [Ablation(interventions=(ScaleBand("slow", 0.5, context=n),)) for n in (10, 20)]
    with pytest.raises(ValueError, match=r"2 ablations are called 'scale-band:slow:0\.5'"):
        ablate(done.model, done.mask, fake_measure(done.score), two, done.internals)


def test_an_error_while_measuring_leaves_the_model_as_it_was(done):
    weights = {key: value.clone() for key, value in done.model.state_dict().items()}
    calls = []

    def fails():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return done.score(), SimpleNamespace(token=1.0, word=2.0)

    with pytest.raises(KeyboardInterrupt):
        ablate(done.model, done.mask, fails, parse_all(["qk+off-sink:0.1"]), done.internals, progress=False)
    assert all(torch.equal(value, weights[key]) for key, value in done.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in done.model.modules())
