from __future__ import annotations

import json

import pytest

from tomfisher.evaluate.statistics import wilson_interval
from tomfisher.report import load, write
from tomfisher.report.sections import sink_sentence
from tomfisher.report.tables import band_table, enrichment_table, sink_table
from tomfisher.results.ablations import ablation_table
from tomfisher.results.fill_grid import grid_table
from tomfisher.results.results import Results
from tomfisher.results.tables import PAGE
from tomfisher.results.trainings import training_table

pytestmark = pytest.mark.slow


def score(right, **p):
    return {"n": 40, "accuracy": right / 40, "ci95": list(wilson_interval(right, 40)), **p}


def state(name, right, p, seed=None, perplexity=10.0):
    conditions = {key: score(right, p_vs_start=p) for key in ("false-belief", "all")}
    fields = {"trainable": 5, "learning_rate": None if p is None else 1e-3, "perplexity": perplexity}
    return {"name": name, "seed": seed, "conditions": conditions, **fields}


@pytest.fixture
def finetune():
    states = [
        state("untouched", 20, None),
        state("masked", 30, 0.01, perplexity=11.0),
        state("random", 22, 0.5, seed=3),
        state("lora", 31, 0.02),
    ]
    return {"states": states, "notes": ["LoRA diverged once"]}


@pytest.fixture
def grid():
    """One κ with two fills; controls of one of them."""

    def row(fill, mask, accuracy, seed=None, p=None):
        known = {
            "fill": fill,
            "kappa": 0.01 if mask != "none" else 0.0,
            "mask": mask,
            "seed": seed,
            "nnz": 1234,
        }
        score = {
            "condition": "false-belief",
            "n": 40,
            "accuracy": accuracy,
            "ci95_low": 0.1,
            "ci95_high": 0.4,
        }
        return {
            **known,
            **score,
            "p_vs_baseline": p,
            "p_holm": p,
            "perplexity": 10.0 if mask == "none" else 10.2,
        }

    rows = [row("scale:0", "none", 0.9), row("scale:0", "task-control", 0.25, p=1e-4)]
    rows += [
        row("scale:0", "control-only", 0.85),
        row("scale:0", "random", 0.9, 0),
        row("scale:0", "random", 0.875, 1),
    ]
    rows += [row("scale:2", "task-control", 0.5, p=0.02)]
    return {"rows": rows, "conclusions": ["2 tests, corrected together (Holm). Nothing rises."]}


def test_a_grid_of_fills_is_a_row_per_fill_beside_its_controls(grid):
    table = grid_table(Results.from_dict(grid), PAGE)
    assert table.columns == [
        *("Fill", "κ", "Weights", "False-belief", "95 % interval", "p: false-belief", "p: all", "All"),
        *("Perplexity", "Rise", "Control-only false-belief", "Random false-belief"),
    ]
    untouched, zero, double = table.rows
    assert untouched == ["none", "0", "1,234", "0.900", "0.100 to 0.400", *"–––", "10", *"–––"]
    assert zero[:6] == ["scale:0", "0.01", "1,234", "0.250", "0.100 to 0.400", "0.0001"]
    assert zero[6:] == [*"––", "10.2", "+2.0%", "0.850", "0.875 to 0.900"]
    assert double[:6] == ["scale:2", "0.01", "1,234", "0.500", "0.100 to 0.400", "0.02"]
    assert double[6:] == [*"––", "10.2", "+2.0%", *"––"]
    assert "all 2 tests" in table.caption


def test_the_sink_rate_is_a_column_and_short_prompts_are_said(make_run, inside):
    for number, state in enumerate((inside["baseline"], *inside["states"].values())):
        state["sinks"] |= {
            "epsilon": 0.3,
            "window": 64,
            "long_prompts": 6,
            "metric": [0.5 - number / 10, 0.0],
        }
    table = sink_table(inside)
    assert table.columns[2] == "Sink rate (ε = 0.3, T = 64)"
    assert [row[2] for row in table.rows] == ["50.0%", "40.0%", "30.0%", "20.0%"]
    text = write(make_run(inside=inside)).read_text()
    assert (
        "2 of the 8 prompts have fewer: it is of the other 6" in text and "Sink rate of all prompts" in text
    )
    for state in (inside["baseline"], *inside["states"].values()):
        state["sinks"] |= {"long_prompts": 0, "metric": [None, None]}
    assert [row[2] for row in sink_table(inside).rows] == ["–"] * 4
    assert (
        "8 of the 8 prompts have fewer: there is none" in write(make_run("none", inside=inside)).read_text()
    )
    inside["baseline"]["sinks"]["long_prompts"] = 8
    assert "prompts have fewer" not in write(make_run("long", inside=inside)).read_text()


def test_trainings_are_compared_with_the_start_after_holm(finetune):
    rows = training_table(Results.from_dict(finetune), PAGE).rows
    assert [row[0] for row in rows] == ["untouched", "masked", "random ×1", "lora"]
    assert [row[5] for row in rows] == ["–", "0.03", "0.5", "0.04"]
    assert rows[1][3:5] == ["0.750", "0.598 to 0.858"] and rows[1][-2:] == ["11", "+10.0%"]
    assert rows[0][-1] == "–"


def test_ablations_have_their_controls_and_corrected_p(ablations):
    table = ablation_table(Results.from_dict(ablations), PAGE)
    assert [row[0] for row in table.rows] == ["none (untouched)", "qk", "mlp"]
    assert table.rows[1][2:5] == ["0.300", "0.181 to 0.454", "0.02"]
    assert table.columns[-2:] == ["2 controls", "Their rise"]
    assert table.rows[1][-2:] == ["0.825 to 0.875", "+10.0%"]
    assert table.rows[2][-4:] == ["11", "+10.0%", "–", "–"]
    assert "Holm over all 2 interventions" in table.caption


def test_the_page_shows_what_lies_in_the_run_folder_or_below_it(make_run, finetune, ablations, grid):
    folder = make_run(grid=grid)
    for name, content in (("finetune", finetune), ("ablations", ablations)):
        (folder / name).mkdir()
        (folder / name / f"{name}.json").write_text(json.dumps(content))
    assert set(load(folder).extras) == {"ablations", "finetune", "grid"}
    text = write(folder).read_text()
    for words in ("Ablations", "Training only the masked weights", "Other fills"):
        assert f">{words}</h3>" in text
    assert "LoRA diverged once" in text and "no such layer" in text


def test_an_optional_file_of_another_shape_takes_only_its_own_section_along(make_run):
    text = write(make_run(finetune={"states": [{}]}, grid={"nothing": 1})).read_text()
    for name in ("finetune", "grid"):
        assert f"{name}.json is damaged (KeyError" in text
    assert "An effect was found." in text


def test_bands_say_how_many_pairs_they_have(inside):
    assert band_table(inside).columns[2:] == ["Slow pairs", "Middle pairs", "Fast pairs"]
    for layer in inside["baseline"]["rope"]["layers"]:
        layer["band"] = ["fast", "slow", "slow", "slow" if layer["layer"] else "middle"]
    assert band_table(inside).columns[2:] == [
        "Slow pairs (2 to 3)",
        "Middle pairs (0 to 1)",
        "Fast pairs (1)",
    ]


def test_bands_and_dominant_pairs_are_means_over_heads(inside):
    rows = {row[0]: row[1:] for row in band_table(inside).rows}
    assert rows["task minus control: queries"] == ["-20.0%", "-20.0%", "-30.0%", "–"]
    assert rows["random: keys"][0] == "-1.0%"
    inside["states"]["random"]["rope"]["layers"][0]["k"]["norm"][0][3] *= (
        0.5 / 0.99
    )  # 3 layers, 2 heads: one of six
    rows = {row[0]: row[1:] for row in band_table(inside).rows}
    assert rows["random: keys"][0] == f"{(5 * -0.01 - 0.5) / 6:+.1%}"


def test_random_masks_are_shown_from_least_to_most(inside):
    untouched = {row[0]: row[1:] for row in sink_table(inside).rows}
    inside["randoms"] = [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    bands = {"dominant": [-0.02, 0.01], "slow": [-0.03, 0.0], "middle": [0.001, 0.001], "fast": None}
    sinks = {
        "first_mass": [0.1, 0.25],
        "sink_rate": [0.5, 0.75],
        "angle": [80.0, 81.26],
        "entropy": [2.0, 2.0],
    }
    inside["random_range"] = {
        "rope": {"dominant": [-0.02, 0.01], "q": bands, "k": {**bands, "fast": [-0.1, 0.1]}},
        "sinks": {**sinks, "key_ratio": None},
    }
    table = band_table(inside)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["random: queries"] == ["-2.0% to +1.0%", "-3.0% to +0.0%", "+0.1%", "–"]
    assert rows["random: keys"][-1] == "-10.0% to +10.0%"
    assert rows["task minus control: queries"] == ["-20.0%", "-20.0%", "-30.0%", "–"]
    assert "Random: least to most of 3 masks." in table.caption
    table = sink_table(inside)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["random"] == ["0.100 to 0.250", "50.0% to 75.0%", "80.0° to 81.3°", "2.000", "–"]
    assert all(rows[name] == untouched[name] for name in rows if name != "random")
    assert "Random: least to most of 3 masks." in table.caption
    assert "random 0.100 to 0.250" in sink_sentence(inside)


def test_rows_of_frequencies_count_the_layers_where_whole_pairs_stand_out(inside):
    tests = inside["profile"]["enrichment"]
    rows = {row[0]: row[1:] for row in enrichment_table(inside["profile"]).rows}
    # layers 0, 1, 2 have 5, 11 and 17 of 10 expected
    assert rows["W_Q, dominant"] == ["30", "10.0", "3.00", "0.002", "2 of 3", "0 of 3"]
    assert rows["W_K, slow"] == ["30", "10.0", "3.00", "0.002", "2 of 3", "1 of 3"]
    del tests["model"][0]["p_pairs_corrected"]  # of an analysis that did not correct it
    assert enrichment_table(inside["profile"]).rows[0][4:] == ["–", "2 of 3", "0 of 3"]
