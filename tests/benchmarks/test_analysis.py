"""The benchmark of the analysis in its smallest configuration: it checks what it times, and its record is complete."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tomfisher.analysis.analyze import Analysis, analyze
from tomfisher.benchmarks import bench_analysis, memory
from tomfisher.cli.main import main
from tomfisher.models import load_model
from tomfisher.results import Results
from tomfisher.results.row import rows_of

pytestmark = pytest.mark.slow

PROMPTS = [[3, 5, 7, 9, 11, 4], [8, 2, 6], [10, 12, 14, 5]]


@pytest.fixture(scope="module")
def model():
    return load_model("testbed-llama", dtype="fp32", device="cpu").model


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_record_and_table(tmp_path, capsys):
    path = tmp_path / "record.json"
    words = "analysis --model testbed-llama --prompts 4 --memory_prompts 2,6 --rounds 1 --device cpu"
    assert main(["bench", *words.split(), "--output_path", str(path)]) == 0
    assert (tmp_path / "record.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(path.read_text())
    assert {"machine", "versions", "command", "date", "kernel_sources"} <= set(found)
    assert found["settings"]["task"] == "testbed" and found["settings"]["prompts"] == 4
    (case,) = found["results"]["cases"]
    assert list(case["contenders"]) == [
        "forward passes alone",
        "spectrum and sinks",
        "rope only",
        "sinks only",
    ]
    assert case["contenders"]["forward passes alone"]["times_floor"]["median"] == 1.0
    assert all(row["times_floor"]["median"] > 0 for row in case["contenders"].values())
    assert max(found["results"]["errors"].values()) < 1e-4
    points = found["results"]["memory"]["points"]
    assert [point["prompts"] for point in points] == [2, 6] and points[0]["tokens"] < points[1]["tokens"]
    assert found["results"]["memory"]["tokens_per_batch"] == points[0]["tokens"]
    assert found["results"]["report"] is None
    out = capsys.readouterr().out
    assert "x passes" in out and "6 prompts" in out and "target: 1.5 at most" in out


@pytest.mark.parametrize(
    ("part", "field"), [("sinks", "first_mass"), ("rope", "q_energy"), ("rope", "k_energy")]
)
def test_a_wrong_analysis_is_not_timed(model, monkeypatch, part, field):
    assert max(bench_analysis.check(model, PROMPTS, 1e-4).values()) < 1e-4

    def wrong(*args, **kwargs):
        found = analyze(*args, **kwargs)
        first, *others = found.results[part].layers
        bent = replace(first, **{field: getattr(first, field) * 1.01 + 0.001})
        return Analysis(found.results | {part: replace(found.results[part], layers=(bent, *others))}, {})

    monkeypatch.setattr(bench_analysis, "analyze", wrong)
    with pytest.raises(RuntimeError, match="The analysis is wrong"):
        bench_analysis.check(model, PROMPTS, 1e-4)
    assert model.config._attn_implementation != "eager"  # put back


def test_the_passes_alone_run_every_prompt_once(model, monkeypatch):
    seen = []
    original = type(model).forward

    def counting(self, input_ids, **kwargs):
        seen.extend(input_ids.tolist())
        return original(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", counting)
    bench_analysis.forward(model, PROMPTS, 12)
    assert sorted(seen) == sorted([PROMPTS[0], PROMPTS[2] + [5] * 2, PROMPTS[1]])


def test_memory_is_taken_at_one_size_of_batch(model, monkeypatch):
    largest = []

    def passes(model, prompts, budget):
        lengths = [len(prompt) for prompt in prompts]
        largest.append(max(len(b) * lengths[b[0]] for b in bench_analysis.plan_batches(lengths, budget)))

    monkeypatch.setattr(bench_analysis, "forward", passes)
    monkeypatch.setattr(memory, "peak_extra_bytes", lambda run, device: run() and 0)
    prompts = [[1] * n for n in (4, 6, 5, 9, 9, 3, 7, 8, 2, 9)]
    bench_analysis.over_prompts(model, prompts, (3, 6, 10), "cpu")
    assert largest == [27] * 3


def test_a_model_without_rotation_is_refused(capsys):
    words = "analysis --model testbed2-mamba --prompts 4 --no_memory --rounds 1 --device cpu"
    assert main(["bench", *words.split()]) == 2
    assert "Give a model with RoPE" in capsys.readouterr().err


@pytest.mark.slow
def test_the_report_of_a_run_is_timed_and_weighed(tmp_path):
    score = {"n": 4, "n_scenes": 2, "accuracy": 0.5, "ci95": [0.1, 0.9], "p_vs_baseline": None}
    state = {"kappa": 0.0, "mask": "none", "nnz": 0, "conditions": {"all": score}, "perplexity": 10.0}
    Results(tuple(rows_of({**state, "word_perplexity": 30.0}))).save(tmp_path)
    found = bench_analysis.report_of(str(tmp_path), 1)
    assert found["run"] == tmp_path.name and found["seconds"]["median"] > 0 and found["bytes"] > 10_000
    with pytest.raises(RuntimeError, match=r"The report of .*nowhere failed"):
        bench_analysis.report_of(str(tmp_path / "nowhere"), 1)
