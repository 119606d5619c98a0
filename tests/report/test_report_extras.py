from __future__ import annotations

import json

import pytest

from tomfisher.evaluate.statistics import wilson_interval
from tomfisher.report import load, write
from tomfisher.report.tables import (
    ablation_table,
    architecture_table,
    band_table,
    enrichment_table,
    finetune_table,
)


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
def architectures():
    scores = {
        "before": score(40),
        "after": score(10),
        "random": [score(38), score(40)],
        "control-only": score(39),
    }
    outcome = {
        "title": "MPT",
        "positions": "ALiBi",
        "found": True,
        "kappa": 0.03,
        "p": 1e-6,
        "conditions": {"false-belief": scores},
        "perplexity_rise": 0.02,
    }
    return {"architectures": [outcome]}


def test_trainings_are_compared_with_the_start_after_holm(finetune):
    rows = finetune_table(finetune).rows
    assert [row[0] for row in rows] == ["untouched", "masked", "random (seed 3)", "lora"]
    assert [row[4] for row in rows] == ["–", "0.03", "0.5", "0.04"]
    assert rows[1][3] == "0.750 [0.598, 0.858]" and rows[1][-2:] == ["11", "+10.0%"]
    assert rows[0][-1] == "–"


def test_architectures_have_their_intervals(architectures):
    (row,) = architecture_table(architectures).rows
    assert row == [
        "MPT", "ALiBi", "found", "0.03", "1.000 [0.912, 1.000]", "0.250 [0.142, 0.402]", "1e-06",
        "0.950 to 1.000", "0.975 [0.871, 0.996]", "+2.0%",
    ]  # fmt: skip


def test_ablations_have_their_controls_and_corrected_p(ablations):
    rows = ablation_table(ablations).rows
    assert [row[0] for row in rows] == ["none (untouched)", "qk", "mlp"]
    assert rows[1][2:4] == ["0.300 [0.181, 0.454]", "0.02"] and rows[1][-1] == "0.825 to 0.875"
    assert rows[2][-2:] == ["+10.0%", "–"]


def test_the_page_shows_what_lies_in_the_run_folder_or_below_it(make_run, finetune, architectures, ablations):
    folder = make_run(architectures=architectures)
    for name, content in (("finetune", finetune), ("ablations", ablations)):
        (folder / name).mkdir()
        (folder / name / f"{name}.json").write_text(json.dumps(content))
    assert set(load(folder).extras) == {"ablations", "finetune", "architectures"}
    text = write(folder).read_text()
    for words in ("Ablations", "Training only the masked weights", "The same study on other architectures"):
        assert f">{words}</h3>" in text
    assert "LoRA diverged once" in text and "no such layer" in text


def test_an_optional_file_of_another_shape_takes_only_its_own_table_along(make_run):
    text = write(make_run(finetune={"states": [{}]}, architectures={"nothing": 1})).read_text()
    assert "A table of the training" in text and "A table of the architectures" in text
    assert "An effect was found." in text


def test_bands_and_dominant_pairs_are_means_over_heads(inside):
    rows = {row[0]: row[1:] for row in band_table(inside).rows}
    assert rows["task minus control: queries"] == ["-20.0%", "-20.0%", "-30.0%", "–"]
    assert rows["random: keys"][0] == "-1.0%"
    inside["states"]["random"]["rope"]["layers"][0]["k"]["norm"][0][3] *= (
        0.5 / 0.99
    )  # 3 layers, 2 heads: one of six
    rows = {row[0]: row[1:] for row in band_table(inside).rows}
    assert rows["random: keys"][0] == f"{(5 * -0.01 - 0.5) / 6:+.1%}"


def test_rows_of_frequencies_count_the_heads_that_stand_out(inside):
    rows = {row[0]: row[1:] for row in enrichment_table(inside["profile"]).rows}
    assert rows["W_Q, dominant"] == ["30", "10.0", "3.00", "0.002", "0.001", "2 of 6", "2 of 6"]
    assert rows["W_K, slow"][-2:] == ["–", "–"]
    inside["profile"]["enrichment"]["model"][0]["p_corrected"] = 0.0
    assert enrichment_table(inside["profile"]).rows[0][5] == "< 1e-300"
