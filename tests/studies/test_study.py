from __future__ import annotations

import json
import math
import shutil
import signal
import statistics
from pathlib import Path

import pytest
import torch
from processes import run_forks

from tomfisher import FisherDiagonal, SparseMask, evaluate, perturb, provenance, tasks, top_fraction
from tomfisher.models import load_model
from tomfisher.results import Results
from tomfisher.studies import Config, Experiment

pytestmark = pytest.mark.slow

# killed as soon as a file appears; a pause after each one leaves time for it
RUN = """
import os, signal, threading, time
from pathlib import Path
import torch
from tomfisher.studies import Config, Experiment
from tomfisher.results.folder import RunFolder

def kill(stage):
    while not stage.exists():
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(int(os.environ["THREADS"]))
if stage := os.environ.get("STAGE"):
    write = RunFolder.write_text
    RunFolder.write_text = lambda *args: (write(*args), time.sleep(0.05))
    threading.Thread(target=kill, args=[Path(stage)], daemon=True).start()
Experiment(Config.resolve({}, config="study.yaml")).run(progress=False)
"""


def run(settings):
    return Experiment(Config.from_dict(settings)).run(progress=False)


def without_time(folder):
    data = json.loads((Path(folder) / "results.json").read_text())
    del data["provenance"]["time"]
    return data


@pytest.fixture
def finished(tiny_settings, once):
    return once(run, tiny_settings)


def test_points_are_the_plan_and_every_number_is_recomputed_by_hand(finished):
    folder = Path(finished["output_path"])
    results = Results.load(folder)
    assert [(r.mask, r.kappa, r.seed) for r in results.select(condition="all")[1:]] == [
        entry
        for kappa in (0.01, 0.05)
        for entry in [("task-control", kappa, None), ("control-only", kappa, None)]
        + [("random", kappa, seed) for seed in range(5)]
    ]
    task, control = (FisherDiagonal.load(folder / "fisher" / which) for which in ("task", "control"))
    loaded = load_model(finished["model"], dtype="fp32", device="cpu")
    stories = tasks.load(finished["task"], n=40, split="evaluation")
    base = evaluate.score(loaded.model, loaded.tokenizer, stories)
    assert results.baseline("all").accuracy == base.by_group()["all"].accuracy
    for kappa in (0.01, 0.05):
        top_task, top_control = top_fraction(task, kappa), top_fraction(control, kappa)
        masks = {"task-control": top_task - top_control, "control-only": top_control - top_task}
        for name, mask in masks.items():
            (row,) = results.at(kappa, name, "all")
            assert SparseMask.load(folder / "masks" / f"{row.key}.safetensors") == mask
            assert row.nnz == mask.nnz > 0
            with perturb(loaded.model, mask):
                scores = evaluate.score(loaded.model, loaded.tokenizer, stories)
            assert row.accuracy == scores.by_group()["all"].accuracy
            p = evaluate.compare(base, scores)["contents/false-belief"]
            assert results.at(kappa, name, "contents/false-belief")[0].p_vs_baseline == p
        assert {row.nnz for row in results.at(kappa, "random")} == {masks["task-control"].nnz}
    assert len({row.perplexity for row in results.rows}) == 15


def test_model_is_untouched_between_points(finished):
    results = Results.load(finished["output_path"])
    loaded = load_model(finished["model"], dtype="fp32", device="cpu")
    with torch.inference_mode():
        before = loaded.model(input_ids=torch.arange(20)[None]).logits
    with perturb(
        loaded.model, SparseMask.load(Path(finished["output_path"]) / "masks/task-control-0.05.safetensors")
    ):
        pass
    with torch.inference_mode():
        assert torch.equal(before, loaded.model(input_ids=torch.arange(20)[None]).logits)
    # the last point was measured after 14 others: alone it gives the same numbers
    folder = Path(finished["output_path"])
    last = results.rows[-1]
    (folder / "points" / f"{last.key}.json").unlink()
    assert run(finished).rows[-1] == last


def test_samples_for_fisher_questions_and_perplexity_do_not_overlap(finished):
    from tomfisher.studies.inputs import Inputs

    inputs = Inputs(Config.from_dict(finished))
    assert not {s.story for s in inputs.task_stories} & {s.story for s in inputs.questions}
    loaded = load_model(finished["model"], device="cpu")
    for sample in inputs.samples("control", loaded):
        assert loaded.tokenizer.decode(sample.input_ids[:20]) not in inputs.perplexity_text


def test_finished_run_is_not_computed_again_and_gives_the_same_file(finished, monkeypatch):
    before = without_time(finished["output_path"])
    monkeypatch.setattr(
        "tomfisher.studies.experiment.named_model", lambda *a, **k: pytest.fail("loaded the model")
    )
    run(finished)
    assert without_time(finished["output_path"]) == before


def test_config_yaml_of_the_folder_runs_the_same_study(finished, tmp_path):
    before = without_time(finished["output_path"])
    again = Config.resolve(
        {"output_path": str(tmp_path / "again")}, config=f"{finished['output_path']}/config.yaml"
    )
    Experiment(again).run(progress=False)
    after = without_time(tmp_path / "again")
    assert after["points"] == before["points"] and after["baseline"] == before["baseline"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", ["fisher/task/fisher.json", "points/baseline.json", "points/random-0.05-seed1.json"]
)
def test_killed_run_started_again_ends_like_an_unbroken_one(finished, stage, tmp_path):
    """SIGKILL as soon as a file appears, then the same command again."""
    folder = tmp_path / "killed"
    config = Config.from_dict({**finished, "output_path": str(folder)})
    (tmp_path / "study.yaml").write_text(config.to_yaml())
    threads = {"THREADS": str(torch.get_num_threads())}
    (killed,) = run_forks(tmp_path, RUN, [{**threads, "STAGE": str(folder / stage)}])
    assert killed.code == -signal.SIGKILL, killed.err
    assert (folder / stage).exists() and not (folder / "results.json").exists()
    (done,) = run_forks(tmp_path, RUN, [threads])
    assert done.code == 0, done.err
    unbroken, resumed = without_time(finished["output_path"]), without_time(folder)
    for data in (unbroken, resumed):  # the one was started by pytest
        del data["provenance"]["command"]
    assert resumed == unbroken


def test_changed_setting_is_refused_and_overwrite_starts_again(finished):
    with pytest.raises(ValueError, match=r"limit: was 40, now 20"):
        run({**finished, "limit": 20})
    results = Experiment(Config.from_dict({**finished, "limit": 20}), overwrite=True).run(progress=False)
    assert results.baseline("all").n == 20


def test_points_are_not_compared_with_a_baseline_that_was_scored_another_way(finished):
    folder = Path(finished["output_path"])
    baseline = folder / "points" / "baseline.json"
    saved = json.loads(baseline.read_text())
    assert saved["scores"]["packed"] is True
    del saved["scores"]["packed"]  # as versions wrote it that packed nothing
    baseline.write_text(json.dumps(saved))
    next(folder.glob("points/task-control-*.json")).unlink()
    with pytest.raises(ValueError, match=r"without packing questions.*rounds differently.*--overwrite"):
        run(finished)


def test_changed_task_file_is_refused(finished, tmp_path):
    copy = tmp_path / "task.jsonl"
    shutil.copy(finished["task"], copy)
    settings = {**finished, "task": str(copy), "output_path": str(tmp_path / "other"), "random_seeds": 0}
    run(settings)
    copy.write_text(copy.read_text().replace("Anna", "Dan"))
    with pytest.raises(ValueError, match=r"inputs of .* changed since it was begun(.|\n)*data\.questions"):
        run(settings)


def test_changed_model_weights_are_refused(finished, tmp_path):
    model = load_model(finished["model"], device="cpu").model
    shutil.copytree(finished["model"], tmp_path / "m")
    settings = {**finished, "model": str(tmp_path / "m"), "output_path": str(tmp_path / "other")}
    settings |= {"random_seeds": 0, "kappas": [0.05]}
    run(settings)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(1.0)
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "other/points/task-control-0.05.json").unlink()
    with pytest.raises(ValueError, match=r"evaluation_model\.weights_sha256"):
        run(settings)


def test_damaged_point_is_said_and_restored(finished):
    before = without_time(finished["output_path"])
    file = Path(finished["output_path"]) / "points" / "random-0.01-seed2.json"
    file.write_text(file.read_text()[:100])
    with pytest.warns(UserWarning, match=r"random-0\.01-seed2\.json is damaged"):
        run(finished)
    assert without_time(finished["output_path"]) == before


def test_damaged_store_is_an_error_that_says_what_to_do(finished):
    folder = Path(finished["output_path"])
    before = without_time(folder)
    (folder / "points" / "random-0.01-seed2.json").unlink()
    (shard,) = (folder / "fisher" / "control").glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-3] ^= 0x40
    shard.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"SHA-256(.|\n)*Delete the folder .*control"):
        run(finished)
    shutil.rmtree(folder / "fisher" / "control")
    run(finished)
    assert without_time(folder) == before


def test_stores_of_another_model_are_refused_with_names(finished, tmp_path):
    fisher = Path(finished["output_path"]) / "fisher"
    other = {f"{name}.renamed": tensor for name, tensor in FisherDiagonal.load(fisher / "task").items()}
    FisherDiagonal(other, 1, 1, {}, {}).save(tmp_path / "foreign")
    settings = {**finished, "output_path": str(tmp_path / "other")}
    foreign = {"task_store": str(tmp_path / "foreign"), "control_store": str(tmp_path / "foreign")}
    with pytest.raises(
        ValueError, match=r"of another model .*q_proj\.weight\.renamed .*not in the model.* more"
    ):
        run({**settings, **foreign})
    mixed = {**foreign, "control_store": str(fisher / "control"), "output_path": str(tmp_path / "mixed")}
    with pytest.raises(ValueError, match="hold different tensors"):
        run({**settings, **mixed})


def test_stores_of_other_weights_are_refused_though_the_shapes_agree(finished, tmp_path):
    fisher = Path(finished["output_path"]) / "fisher"
    model = load_model(finished["model"], device="cpu").model
    shutil.copytree(finished["model"], tmp_path / "m")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "m")
    stores = {"task_store": str(fisher / "task"), "control_store": str(fisher / "control")}
    settings = {**finished, **stores, "model": str(tmp_path / "m"), "output_path": str(tmp_path / "other")}
    with pytest.raises(ValueError, match=r"The task store was taken on other weights .*this very model"):
        run(settings)


def test_a_resumed_study_keeps_the_versions_it_began_with_and_says_what_changed(finished, monkeypatch):
    folder = Path(finished["output_path"])
    before = without_time(folder)
    (folder / "points" / "random-0.01-seed2.json").unlink()
    newer = {**provenance.versions(), "torch": "99.0"}
    monkeypatch.setattr("tomfisher.provenance.versions", lambda: newer)
    said: list[str] = []
    Experiment(finished, say=said.append).run(progress=False)
    assert without_time(folder) == before
    assert any("versions changed" in line and "-> 99.0" in line for line in said)


def test_existing_stores_are_used_instead_of_new_ones(finished, tmp_path):
    fisher = Path(finished["output_path"]) / "fisher"
    stores = {"task_store": str(fisher / "task"), "control_store": str(fisher / "control")}
    results = run({**finished, **stores, "output_path": str(tmp_path / "sweep"), "kappas": [0.05]})
    assert not (tmp_path / "sweep" / "fisher").exists()
    old = Results.load(finished["output_path"])
    assert results.at(0.05, "random") == old.at(0.05, "random")


def test_random_masks_only_at_some_kappas(finished, tmp_path):
    settings = {**finished, "output_path": str(tmp_path / "some"), "random_kappas": [0.05], "random_seeds": 2}
    results = run(settings)
    assert results.at(0.01, "random") == () and len(results.at(0.05, "random")) == 2


def test_generated_answers_and_authors_compat(finished, tmp_path):
    settings = {**finished, "output_path": str(tmp_path / "g"), "method": "generate", "compat": "authors"}
    settings |= {
        "repetitions": 2,
        "temperature": 0.6,
        "top_p": 0.9,
        "kappas": [0.05],
        "random_seeds": 1,
        "limit": 8,
    }
    settings |= {"supervise": "last"}
    results = run(settings)
    assert math.isfinite(results.rows[-1].perplexity)
    assert results.provenance["evaluation"]["chance"]["false-belief"] is None
    strict = top_fraction(FisherDiagonal.load(tmp_path / "g/fisher/task"), 0.05, compat="authors")
    control = top_fraction(FisherDiagonal.load(tmp_path / "g/fisher/control"), 0.05, compat="authors")
    assert results.at(0.05, "task-control")[0].nnz == (strict - control).nnz


def test_short_task_file_is_used_whole_and_said(finished, tmp_path):
    settings = {
        **finished,
        "output_path": str(tmp_path / "short"),
        "n_task": 1000,
        "limit": 1000,
        "random_seeds": 0,
    }
    with pytest.warns(UserWarning, match=r"limit is 1000, but .* has \d+ questions in its evaluation half"):
        results = run({**settings, "kappas": [0.05]})
    assert results.baseline("all").n == len(tasks.load(finished["task"], split="evaluation"))


def test_provenance_says_where_the_numbers_come_from(finished):
    said = json.loads((Path(finished["output_path"]) / "results.json").read_text())["provenance"]
    for rules in (said["rules"]["questions"], said["rules"]["perplexity"], said["fisher"]["task"]["rules"]):
        assert rules["batches"] == "padded batches" and rules["rows"] == {"offset": 0, "kept": True}
    assert {"torch", "transformers", "python", "tomfisher"} <= set(said["versions"])
    assert said["model"]["model_type"] == "llama" and len(said["model"]["config_sha256"]) == 64
    assert {"questions", "control", "task"} <= set(said["data"])
    assert said["fisher"]["task"]["num_samples"] == 15
    assert said["fisher"]["task"]["implementations"]
    assert said["seeds"] == {"study": 0, "random": [0, 1, 2, 3, 4]}
    assert said["evaluation"] | {"device": 0} == {
        "method": "choice",
        "chance": {"false-belief": 0.5, "all": 0.5},
        "test": "exact sign-flip test over clusters",
        "device": 0,
        "perplexity_window": 64,
        "fisher_dtype": "fp32",
        "eval_dtype": "fp32",
    }


def test_fisher_values_are_recorded_tensor_by_tensor(finished):
    folder = Path(finished["output_path"])
    said = json.loads((folder / "fisher-values.json").read_text())
    for which in ("task", "control"):
        F, found = FisherDiagonal.load(folder / "fisher" / which), said[which]
        assert found["num_samples"] == F.num_samples and list(found["tensors"]) == list(F)
        for name, values in F.items():
            tensor, flat = found["tensors"][name], values.flatten()
            assert (tensor["numel"], tensor["zeros"]) == (len(flat), int((flat == 0).sum()))
            assert (tensor["min"], tensor["max"]) == (flat.min().item(), flat.max().item())
            normal = flat[flat >= torch.finfo(torch.float32).smallest_normal]
            first, counts = tensor["histogram"]["first"], tensor["histogram"]["counts"]
            exponents = torch.frexp(normal).exponent - 1
            assert torch.bincount(exponents - first).tolist() == counts and counts[0] > 0
        for kappa, threshold in zip((0.01, 0.05), found["thresholds"], strict=True):
            mask = top_fraction(F, kappa)
            smallest = [F[name].flatten()[index].min().item() for name, index in mask.items() if len(index)]
            assert threshold["kappa"] == kappa
            assert (threshold["least"], threshold["most"]) == (min(smallest), max(smallest))
            assert threshold["median"] == statistics.median(smallest)


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_text('{"task": {}}')])
def test_missing_fisher_values_are_added_while_the_stores_are_there(finished, damage, monkeypatch):
    folder = Path(finished["output_path"])
    file = folder / "fisher-values.json"
    before = file.read_text()
    damage(file)
    monkeypatch.setattr(
        "tomfisher.studies.experiment.named_model", lambda *a, **k: pytest.fail("loaded the model")
    )
    run(finished)
    assert file.read_text() == before
    file.unlink()
    shutil.rmtree(folder / "fisher" / "control")
    said: list[str] = []
    Experiment(finished, say=said.append).run(progress=False)
    assert not file.exists() and "no fisher-values.json: a Fisher store is gone" in said


def test_ranking_a_study_reads_each_store_once(finished, monkeypatch):
    from tomfisher.ops import topk_summary

    passes: list[tuple] = []

    def once(span, *args):
        passes.append((span.path, span.offset))
        return topk_summary(span, *args)

    def forbidden(*args):
        pytest.fail("a pass of its own")

    for name in ("topk", "summary"):
        monkeypatch.setattr(f"tomfisher.ops.{name}", forbidden)
    monkeypatch.setattr("tomfisher.ops.topk_summary", once)
    folder = Path(finished["output_path"])
    (folder / "fisher-values.json").unlink()
    run(finished)
    assert len(passes) == len(set(passes)) == 2 * len(FisherDiagonal.load(folder / "fisher" / "task"))


def test_an_empty_mask_before_a_full_one_does_not_stop_the_study(finished, tmp_path):
    settings = {**finished, "output_path": str(tmp_path / "some"), "kappas": [1e-6, 0.05], "random_seeds": 0}
    with pytest.warns(UserWarning, match="selects no entry"):
        results = run(settings)
    assert [row.nnz > 0 for row in results.select(condition="all")[1:]] == [False, False, True, True]
    assert set(results.provenance["fill"]["implementations"]) == {
        "weight_sums@cpu",
        "masked_fill_mean_@cpu",
        "scatter_@cpu",
    }
    with pytest.warns(UserWarning, match="selects no entry"):
        only_empty = run({**settings, "output_path": str(tmp_path / "none"), "kappas": [1e-6]})
    assert only_empty.provenance["fill"]["implementations"] == {}


def test_a_short_control_text_stops_the_study_before_anything_is_computed(finished, tmp_path):
    folder = tmp_path / "short"
    settings = {**finished, "output_path": str(folder), "n_control": 10**6}
    with pytest.raises(ValueError, match="--n_control"):
        run(settings)
    assert not (folder / "fisher").exists()
    run({**finished, "output_path": str(folder), "kappas": [0.05], "random_seeds": 0})  # the folder is free


def test_texts_that_the_tokenizer_does_not_know_are_said(finished, tmp_path):
    control = tmp_path / "foreign.txt"
    control.write_text("zyx wvu tsr qpo\n\n" * 4000)
    settings = {**finished, "control": str(control), "output_path": str(tmp_path / "foreign")}
    with pytest.warns(UserWarning, match="of the tokens of foreign.txt .* are unknown"):
        run({**settings, "kappas": [0.05], "random_seeds": 0})
