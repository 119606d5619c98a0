"""`analysis.json`: what is in it, that it is resumed, and that no model makes the study fail."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tomfisher import SparseMask, perturb
from tomfisher.analysis import analyze, attention_sinks, compare, mask_profile
from tomfisher.models import load_model
from tomfisher.results import Results
from tomfisher.results.analysis import chosen_kappa
from tomfisher.results.row import rows_of
from tomfisher.runtime.structure import layer_index
from tomfisher.studies import Config, Experiment
from tomfisher.studies.analysis import StudyAnalysis, random_seeds, rounded
from tomfisher.studies.inputs import Inputs
from tomfisher.tasks.encode import encode

STATES = ["task-control", "control-only", "random"]
KEYS = {"kappa", "inputs", "prompts", "tokens", "baseline", "states", "profile", "profile_random", "maps"}
KEYS |= {"unavailable", "seconds", "randoms", "random_range"}


def settings_of(tiny_settings, **changes):
    small = {
        "kappas": [0.05],
        "random_seeds": 2,
        "limit": 24,
        "analysis_prompts": 6,
        "perplexity_tokens": 200,
    }
    return {**tiny_settings, **small, **changes}


def run(settings, said=None):
    Experiment(Config.from_dict(settings), say=None if said is None else said.append).run(progress=False)
    file = Path(settings["output_path"]) / "analysis.json"
    return json.loads(file.read_text()) if file.exists() else None


@pytest.fixture
def finished(tiny_settings, once):
    return once(run, settings_of(tiny_settings))


def without_time(found):
    return {key: value for key, value in found.items() if key != "seconds"}


def content(settings):
    return json.loads((Path(settings["output_path"]) / "analysis.json").read_text())


def close(found, expected):
    """Equal up to the five digits of the file."""
    return torch.allclose(torch.tensor(found), torch.tensor(rounded(expected)), rtol=1e-4, atol=1e-7)


def averages(before, model, mask, prompts):
    """Means over all heads of all layers by place in a row of `randoms`."""
    with perturb(model, mask):
        after = analyze(model, prompts)
    sinks, spectra = after.results["sinks"], (before.results["rope"], after.results["rope"])
    found = {
        ("sinks", name): torch.cat([getattr(layer, name) for layer in sinks.layers]).mean().item()
        for name in ("first_mass", "angle", "key_ratio")
    }
    every = []
    for part in ("q", "k"):
        changes = []
        for old, new in zip(*(spectrum.layers for spectrum in spectra), strict=True):
            best = old.norm(part).argmax(1, keepdim=True)
            changes.append((new.norm(part).gather(1, best) / old.norm(part).gather(1, best) - 1).flatten())
        every += changes
        found["rope", part, "dominant"] = torch.cat(changes).mean().item()
        bands = torch.cat(compare(*spectra).bands(part))
        found["rope", part, "fast"] = bands[:, 2].nanmean().item()
    return found | {("rope", "dominant"): torch.cat(every).mean().item()}


def picked(values, place):
    for name in place:
        values = values[name]
    return values


def test_every_number_is_recomputed_by_hand(finished):
    found = content(finished)
    assert set(found) == KEYS and list(found["states"]) == STATES
    loaded = load_model(finished["model"], dtype="fp32", device="cpu")
    stories = Inputs(Config.from_dict(finished)).questions[:6]
    prompts = [s.input_ids for s in encode(loaded.tokenizer, [s.prompt for s in stories], supervise="all")]
    assert (found["prompts"], found["tokens"]) == (6, sum(map(len, prompts)))
    mask = SparseMask.load(Path(finished["output_path"]) / "masks/task-control-0.05.safetensors")
    control = SparseMask.load(Path(finished["output_path"]) / "masks/control-only-0.05.safetensors")
    before = analyze(loaded.model, prompts)
    for which, m in zip(STATES, (mask, control, mask.random_like(0)), strict=True):
        state = found["states"][which]
        assert state["nnz"] == m.nnz
        with perturb(loaded.model, m):
            after = analyze(loaded.model, prompts)
        for layer, spectrum, sinks in zip(
            range(2), after.results["rope"].layers, after.results["sinks"].layers, strict=True
        ):
            assert close(state["rope"]["layers"][layer]["q"]["norm"], spectrum.q_norm.tolist())
            assert close(state["sinks"]["layers"][layer]["first_mass"], sinks.first_mass.tolist())
        change = compare(before.results["sinks"], after.results["sinks"])
        assert state["change"]["sinks"]["largest"][0]["head"] == change.largest(1)[0].head
        bands = compare(before.results["rope"], after.results["rope"]).bands("k")
        assert close(state["change"]["rope"]["k"][1]["bands"], bands[1].tolist())
    randoms = [mask.random_like(seed) for seed in (0, 1)]  # as many as the study has
    assert [row["seed"] for row in found["randoms"]] == [0, 1] == found["inputs"]["random_seeds"]
    expected = [averages(before, loaded.model, random, prompts) for random in randoms]
    for row, values in zip(found["randoms"], expected, strict=True):
        assert row["nnz"] == mask.nnz
        assert close([picked(row, place) for place in values], list(values.values()))
    for place in expected[0]:
        both = [values[place] for values in expected]
        assert close(picked(found["random_range"], place), [min(both), max(both)])
    assert expected[0] != expected[1]
    profile = mask_profile(mask, loaded.model, before.results["rope"])
    assert found["profile"]["groups"] == rounded(profile.groups())
    expected = json.loads(json.dumps(rounded(profile.to_dict())))
    for level, p in (("model", "p_pairs"), ("layers", "p_pairs"), ("heads", "p")):
        pairs = zip(found["profile"]["enrichment"][level], expected["enrichment"][level], strict=True)
        assert all(test.items() <= full.items() and f"{p}_corrected" in test for test, full in pairs)
    pairs = zip(found["profile"]["matrices"], expected["matrices"], strict=True)
    assert all(matrix == {k: v for k, v in full.items() if k != "random"} for matrix, full in pairs)
    random = mask_profile(mask.random_like(0), loaded.model, before.results["rope"], fill=None)
    assert found["profile_random"]["kinds"] == rounded(random.kinds())
    assert len(found["profile_random"]["enrichment"]["model"]) == 8
    assert found["unavailable"] == {}


def test_maps_are_those_of_the_two_heads_that_change_most(finished):
    found = content(finished)
    loaded = load_model(finished["model"], dtype="fp32", device="cpu")
    change = found["states"]["task-control"]["change"]["sinks"]["largest"]
    heads = [(row["layer"], row["head"]) for row in change[:2]]
    assert list(found["maps"]) == [f"{layer}.{head}" for layer, head in heads]
    prompt = loaded.tokenizer(Inputs(Config.from_dict(finished)).questions[0].prompt)["input_ids"][:64]
    mask = SparseMask.load(Path(finished["output_path"]) / "masks/task-control-0.05.safetensors")
    before = attention_sinks(loaded.model, [prompt], heads=heads).maps
    with perturb(loaded.model, mask):
        after = attention_sinks(loaded.model, [prompt], heads=heads).maps
    for head in heads:
        one = found["maps"][f"{head[0]}.{head[1]}"]
        for state, maps in (("baseline", before), ("task-control", after)):
            assert (torch.tensor(one[state]) - maps[head][0]).abs().max() < 6e-5  # four decimals
        assert one["tokens"] == [loaded.tokenizer.decode([i]) for i in prompt]


def test_a_finished_analysis_is_not_made_again(finished, monkeypatch):
    file = Path(finished["output_path"]) / "analysis.json"
    before = file.read_bytes()
    monkeypatch.setattr(
        "tomfisher.studies.experiment.named_model", lambda *a, **k: pytest.fail("loaded the model")
    )
    run(finished)
    assert file.read_bytes() == before


@pytest.mark.parametrize("harm", ["gone", "cut", "no mask", "damaged mask"])
def test_what_is_gone_or_damaged_is_made_again(finished, harm):
    folder = Path(finished["output_path"])
    before = content(finished)
    file, mask = folder / "analysis.json", folder / "masks/task-control-0.05.safetensors"
    if harm == "gone":
        file.unlink()
    elif harm == "cut":
        file.write_text(file.read_text()[:200])
    elif harm == "no mask":
        mask.unlink()
    else:
        mask.write_bytes(mask.read_bytes()[:-20])
    again = run(finished)
    assert without_time(again) == without_time(before)
    assert SparseMask.load(mask).nnz == before["states"]["task-control"]["nnz"]


def test_another_number_of_prompts_redoes_the_analysis_alone(finished, monkeypatch):
    folder = Path(finished["output_path"])
    points = {file: file.stat().st_mtime_ns for file in (folder / "points").iterdir()}
    again = run({**finished, "analysis_prompts": 3})
    assert again["prompts"] == 3 and "analysis_prompts: 3" in (folder / "config.yaml").read_text()
    assert points == {file: file.stat().st_mtime_ns for file in (folder / "points").iterdir()}


def test_another_number_of_random_masks_redoes_the_analysis_alone(finished):
    folder = Path(finished["output_path"])
    points = {file: file.stat().st_mtime_ns for file in (folder / "points").iterdir()}
    before, again = content(finished), run({**finished, "analysis_random_masks": 1})
    assert again["randoms"] == before["randoms"][:1]
    low, high = again["random_range"]["sinks"]["first_mass"]
    assert low == high == before["randoms"][0]["sinks"]["first_mass"]
    assert points == {file: file.stat().st_mtime_ns for file in (folder / "points").iterdir()}


@pytest.mark.parametrize(
    ("changes", "seeds"),
    [
        ({}, [4, 5, 6]),
        ({"random_seeds": 2}, [4, 5]),
        ({"analysis_random_masks": 9}, [4, 5, 6, 7, 8]),
        ({"random_seeds": 0}, [4]),
        ({"random_kappas": [0.1]}, [4]),
        ({"random_kappas": [0.05]}, [4, 5, 6]),
    ],
)
def test_as_many_random_masks_as_the_study_has_at_that_kappa(tiny_settings, changes, seeds):
    config = Config.from_dict(
        {**tiny_settings, "kappas": [0.05, 0.1], "random_seeds": 5, "seed": 4, **changes}
    )
    assert random_seeds(config, 0.05) == seeds


def test_an_analysis_of_an_earlier_format_is_made_again(finished):
    file = Path(finished["output_path"]) / "analysis.json"
    whole = content(finished)
    old = {key: value for key, value in whole.items() if key not in ("randoms", "random_range")}
    old["inputs"] = {key: value for key, value in whole["inputs"].items() if key != "format"}
    file.write_text(json.dumps(old))
    assert without_time(run(finished)) == without_time(whole)


def test_zero_prompts_mean_no_analysis(tiny_settings):
    assert run(settings_of(tiny_settings, analysis_prompts=0)) is None
    with pytest.raises(ValueError, match="analysis_prompts must be 0 or more, got -1"):
        Config.from_dict({**tiny_settings, "analysis_prompts": -1})


def test_overwrite_deletes_the_analysis_of_the_earlier_study(finished):
    settings = {**finished, "seed": 3, "analysis_prompts": 0}
    Experiment(Config.from_dict(settings), overwrite=True).run(progress=False)
    assert not (Path(finished["output_path"]) / "analysis.json").exists()


def point(kappa, mask, correct, p, n=100, headline="false-belief"):
    score = {
        "n": n,
        "accuracy": correct / n,
        "ci95": [correct / n - 0.01, correct / n + 0.01],
        "p_vs_baseline": p,
    }
    state = {
        "kappa": kappa,
        "mask": mask,
        "seed": 0 if mask == "random" else None,
        "nnz": 5,
        "perplexity": 2.0,
    }
    return rows_of({**state, "conditions": {headline: score, "all": score}})


def study_of(*falls, controls=1.0):
    rows = point(0.0, "none", 100, None)
    for kappa, accuracy, p in falls:
        rows += point(kappa, "task-control", accuracy, p)
        rows += [
            row for mask in ("control-only", "random") for row in point(kappa, mask, 100 * controls, 1.0)
        ]
    return Results(tuple(rows))


def test_the_kappa_is_that_of_the_verdict_or_of_the_surest_fall():
    assert chosen_kappa(study_of((1e-4, 60, 1e-9), (1e-3, 20, 1e-20))) == 1e-3
    # controls fall too, so nothing is found: the lowest p
    assert chosen_kappa(study_of((1e-4, 60, 1e-9), (1e-3, 80, 1e-3), controls=0.1)) == 1e-4
    assert chosen_kappa(study_of((1e-4, 97, 0.4), (1e-3, 97, 0.4), (1e-2, 99, 0.9))) == 1e-3
    assert chosen_kappa(study_of((1e-4, 100, 1.0), (1e-3, 100, 0.01))) == 1e-3


def test_numbers_are_cut_to_five_digits():
    found = rounded({"a": [1 / 3, 2, None, "x", True], "b": (1e-9 / 7,)})
    assert found == {"a": [0.33333, 2, None, "x", True], "b": [1.4286e-10]}


@pytest.fixture
def of_family(tiny_model, tiny_config):
    """A random model of a family that reads the tiny task, and a mask of a few entries in every matrix."""

    def make(family):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        torch.manual_seed(0)
        config = tiny_config("gemma3" if family == "both-ways" else family, vocab_size=len(tokenizer))
        if family == "both-ways":
            config.use_bidirectional_attention = True
        model = AutoModelForCausalLM.from_config(config).eval()
        shapes = {
            n: tuple(w.shape)
            for n, w in model.named_parameters()
            if w.ndim > 1 and layer_index(n) is not None
        }
        mask = SparseMask({n: torch.arange(9) for n in shapes}, shapes).random_like(1)
        return SimpleNamespace(model=model, tokenizer=tokenizer), mask

    return make


@pytest.mark.parametrize(
    ("family", "there", "missing"),
    [
        ("mpt", {"sinks"}, {"rope": "mpt has no rotary", "enrichment": "mpt has no rotary"}),
        ("jamba", {"sinks"}, {"rope": "jamba has no rotary", "enrichment": "jamba has no rotary"}),
        ("gpt-neox", {"rope", "sinks"}, {}),
        ("gpt-oss", {"rope", "sinks"}, {}),
        ("both-ways", set(), dict.fromkeys(["rope", "sinks", "heads", "enrichment"], "is not causal")),
    ],
)
def test_families_that_lack_a_part_give_the_rest(of_family, tiny_settings, family, there, missing):
    loaded, mask = of_family(family)
    config = Config.from_dict(settings_of(tiny_settings))
    before = {n: w.clone() for n, w in loaded.model.state_dict().items()}
    look = StudyAnalysis(config, Inputs(config), loaded, partial(perturb, loaded.model), progress=False)
    masks = {which: mask.random_like(i) for i, which in enumerate(STATES)}
    found = look(0.05, masks, {7: masks.pop("random"), 8: mask.random_like(9)})
    for rows in (*found["randoms"], found["random_range"]):
        assert rows.keys() & {"rope", "sinks"} == there
    assert [row["seed"] for row in found["randoms"]] == [7, 8]
    assert all(torch.equal(w, before[n]) for n, w in loaded.model.state_dict().items())
    for state in (found["baseline"], *found["states"].values()):
        assert there == state.keys() & {"rope", "sinks"}
    assert set(found["states"]["random"]["change"]) == there and len(found["maps"]) == 2 * ("sinks" in there)
    assert found["unavailable"].keys() == missing.keys()
    for part, reason in missing.items():
        assert reason in found["unavailable"][part]
    assert sum(row["masked"] for row in found["profile"]["layers"]) == mask.nnz
    json.dumps(found, allow_nan=False)


def test_prompts_that_cannot_be_analysed_do_not_stop_it(of_family, tiny_settings, monkeypatch):
    loaded, mask = of_family("llama-gqa")
    config = Config.from_dict(settings_of(tiny_settings))
    look = StudyAnalysis(config, Inputs(config), loaded, partial(perturb, loaded.model), progress=False)
    look._prompts = [torch.tensor([1])]
    found = look(0.05, dict.fromkeys(STATES[:2], mask), {0: mask})
    assert found["randoms"] == [{"seed": 0, "nnz": mask.nnz}] and found["random_range"] == {}
    assert "Prompt 0 has 1 token(s)" in found["unavailable"]["sinks"] and found["maps"] == {}
    assert found["profile"]["nnz"] == mask.nnz and "enrichment" in found["unavailable"]


def test_a_whole_study_of_mamba(of_family, tiny_settings, tmp_path):
    loaded, _ = of_family("mamba")
    for what in (loaded.model, loaded.tokenizer):
        what.save_pretrained(tmp_path / "mamba")
    said: list[str] = []
    found = run(settings_of(tiny_settings, model=str(tmp_path / "mamba"), n_task=3, n_control=3), said)
    assert found["unavailable"].keys() == {"rope", "sinks", "heads", "enrichment"}
    assert any(line.startswith("no sinks: mamba has no attention layer") for line in said)
    assert [row["group"] for row in found["profile"]["groups"]] == ["mixer"]
    assert found["profile"]["sparsity"] and found["maps"] == {}
