"""A study's ablations: every number is what a direct computation gives; the folder resumes and refuses."""

from __future__ import annotations

import csv
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers

from tomfisher import SparseMask, evaluate, perturb, tasks
from tomfisher.ablation import Ablations, ablate, ablate_run
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
from tomfisher.studies.measure import Measure

pytestmark = pytest.mark.slow

NAMES = ["full", "qk", "other-rows", "scale-band:dominant:0.2", "off-sink:0.1", "qk+off-sink:0.1"]


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


def point(done, name):
    (found,) = (p for p in done.found.interventions if p.name == name)
    return found


def test_baseline_full_mask_and_its_random_masks_are_those_of_the_study(study, done):
    def same(mine, rows):
        assert mine.conditions.keys() == {row.condition for row in rows}
        for row in rows:
            for field in ("kappa", "mask", "seed", "nnz", "perplexity", "word_perplexity"):
                assert getattr(mine, field) == getattr(row, field)
            theirs = mine.conditions[row.condition]
            assert (theirs["n"], theirs["accuracy"], tuple(theirs["ci95"])) == (row.n, row.accuracy, row.ci95)
            assert theirs["p_vs_baseline"] == row.p_vs_baseline

    same(done.found.baseline, study.results.select(mask="none"))
    same(point(done, "full"), study.results.select(kappa=0.03, mask="task-control"))
    randoms = {seed: study.results.select(mask="random", kappa=0.03, seed=seed) for seed in (0, 1)}
    assert len(done.found.controls("full")) == len(randoms)
    for mine, rows in zip(done.found.controls("full"), randoms.values(), strict=True):
        same(mine, rows)


def test_no_point_packs_questions_because_interventions_cannot(done):
    saved = [json.loads(file.read_text()) for file in (done.output / "points").glob("*.json")]
    assert len(saved) == 1 + len(done.found.points)
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
    for name, (mask, interventions) in by_hand.items():
        mask = SparseMask({}, done.mask.shapes) if mask is None else mask
        with perturb(done.model, mask), intervene(done.model, *interventions, internals=done.internals):
            scores = done.score()
        found = point(done, name)
        assert found.nnz == mask.nnz
        assert found.accuracy("all") == scores.by_group()["all"].accuracy
        assert found.conditions["all"]["p_vs_baseline"] == evaluate.compare(base, scores)["all"]
    assert len({p.perplexity for p in (done.found.baseline, *done.found.points)}) == 1 + 3 * len(NAMES)
    for seed, control in enumerate(done.found.controls("qk")):
        with perturb(done.model, region["qk"].random_like(seed)):
            assert control.accuracy("all") == done.score().by_group()["all"].accuracy
        assert control.nnz == region["qk"].nnz


def test_points_say_what_they_are(done):
    points = done.found.points
    assert [(p.name, p.seed) for p in points] == [(name, seed) for name in NAMES for seed in (None, 0, 1)]
    labels = {p.name: p.mask for p in done.found.interventions}
    assert labels == dict(zip(NAMES, ["task-control"] * 3 + ["none"] * 2 + ["task-control"], strict=True))
    assert {p.mask for p in points if p.control} == {"random"}
    assert point(done, "qk+off-sink:0.1").interventions == ("qk", "off-sink:0.1")
    assert point(done, "off-sink:0.1").kappa == 0 and point(done, "qk").kappa == 0.03


def test_p_values_are_corrected_over_the_interventions_alone(done):
    raw = [p.conditions["false-belief"]["p_vs_baseline"] for p in done.found.interventions]
    assert done.found.holm() == dict(zip(NAMES, holm(raw), strict=True))


def test_files_hold_the_same_points(done):
    loaded = Ablations.load(done.output)
    assert (loaded.baseline, loaded.points) == (done.found.baseline, done.found.points)
    data = json.loads((done.output / "ablations.json").read_text())
    assert data["holm"]["false-belief"] == done.found.holm()
    assert data["provenance"]["model"]["source"] == "testbed-llama"
    with (done.output / "ablations.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    points = (loaded.baseline, *loaded.points)
    assert len(rows) == sum(len(p.conditions) for p in points)
    heads = [row for row in rows if row["condition"] == "false-belief"]
    assert [row["name"] for row in heads] == [p.name for p in points]
    assert [float(row["accuracy"]) for row in heads] == [p.accuracy("false-belief") for p in points]
    assert not list(done.output.rglob("*.tmp"))


def test_table_has_a_line_for_each_intervention_and_the_range_of_its_controls(done):
    lines = done.found.table().splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["none", *NAMES]
    cells = lines[3].split()
    full, controls = point(done, "full"), done.found.controls("full")
    assert cells[1] == str(full.nnz) and cells[2] == f"{full.accuracy('false-belief'):.3f}"
    low, high = (f"{f(c.accuracy('false-belief') for c in controls):.3f}" for f in (min, max))
    assert cells[-2] == (low if low == high else f"{low}..{high}")
    assert lines[0].rpartition("2 controls")[2].split() == ["their", "rise"]
    alone = Ablations(done.found.baseline, done.found.interventions)
    assert "controls" not in alone.table() and len(alone.table().splitlines()) == len(lines)


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
    assert again.points == done.found.points and len(calls) == 2
    fewer = ablate_run(study.folder, ["off-sink:0.1"], kappa=0.03, output_path=output, progress=False)
    assert len(calls) == 2 and fewer.points == done.found.points


def test_a_second_call_adds_to_the_first_and_p_is_corrected_over_both(study, tmp_path):
    options = {"kappa": 0.03, "output_path": tmp_path / "out", "progress": False}
    options["settings"] = {"random_seeds": 1, "limit": 16, "perplexity_tokens": 50}
    first = ablate_run(study.folder, ["qk", "mixer"], **options)
    second = ablate_run(study.folder, ["full", "off-sink:0.1"], **options)
    names = ["qk", "full", "off-sink:0.1"]
    assert [(p.name, p.seed) for p in second.points] == [(name, seed) for name in names for seed in (None, 0)]
    assert second.points[:2] == first.points and second.baseline == first.baseline
    raw = [p.conditions["false-belief"]["p_vs_baseline"] for p in second.interventions]
    assert second.holm() == dict(zip(names, holm(raw), strict=True)) and second.comparisons == 3
    stored = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert [p["name"] for p in stored["points"] if not p["control"]] == names
    assert stored["comparisons"] == 3 and list(stored["left_out"]) == ["mixer"]
    (tmp_path / "out" / "ablations.json").unlink()  # as after a kill: the points are there
    third = ablate_run(study.folder, ["full"], **options)
    assert {p.name for p in third.interventions} == set(names) and third.interventions[0].name == "full"


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
    assert found.points[0].nnz == half.nnz and found.points[0].mask == "file"
    assert [file.stem for file in sorted((output / "points").iterdir())] == ["baseline", "full"]
    with pytest.raises(ValueError, match=r"settings.limit: there 64, now 32"):
        ablate_run(
            study.folder, mask=tmp_path / "half.safetensors", output_path=output, settings={"limit": 32}
        )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("x")
    with pytest.raises(ValueError, match=r"is no folder of ablations: it holds precious.txt"):
        ablate_run(study.folder, kappa=0.03, output_path=tmp_path / "other", overwrite=True)
    assert (tmp_path / "other" / "precious.txt").read_text() == "x"


def test_an_attempt_without_any_result_may_be_corrected(study, tmp_path):
    options = {"kappa": 0.03, "output_path": tmp_path / "out", "progress": False}
    small = {"random_seeds": 0, "limit": 4, "perplexity_tokens": 50}
    with pytest.raises(ValueError, match="no layer or head 9"):
        ablate_run(study.folder, ["scale-key:0@9"], settings={**small, "limit": 8}, **options)
    (tmp_path / "out" / ".ablations.json.0.tmp").write_text("left by a kill")
    found = ablate_run(study.folder, ["scale-key:0@3"], settings=small, **options)
    assert found.baseline.conditions["all"]["n"] == 4
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {".lock", "inputs.json", "points", "ablations.json", "ablations.csv"}


def test_inputs_that_are_not_there(study, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no run folder: it has no config.yaml"):
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
        assert [p.name for p in found.interventions] == kept
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
    assert {p.name for p in found.points} == {"full"} and len(found.points) == 6
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
