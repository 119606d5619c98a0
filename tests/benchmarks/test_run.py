"""Every benchmark in its smallest configuration: contenders agree, records and plots are complete."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest
import torch

from tomfisher import ops, tasks
from tomfisher.benchmarks import (
    bench_choice,
    bench_fisher,
    bench_growth,
    bench_linear,
    bench_masked_fill,
    bench_scale,
    bench_squared_gradient,
    bench_topk,
    bench_topk_gpu,
    harness,
)
from tomfisher.cli.main import build_parser, main
from tomfisher.models import load_model
from tomfisher.runtime.onednn import has_onednn

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.slow]
RECORD = {"benchmark", "settings", "results", "machine", "versions", "kernel_sources", "command", "date"}
PEERS = {"backpack", "opacus", "vmap"}


@pytest.fixture(autouse=True)
def small_product(monkeypatch):
    """The machine's rate is measured on a product that takes no seconds in bfloat16 either."""
    monkeypatch.setitem(harness._MATMUL_SIZES, "cpu", 64)


def arguments(line, *more):
    return build_parser().parse_args(["bench", *line.split(), *more])


def recorded(tmp_path, line, *more):
    """Run on the command line; return the record it wrote, once its form and its plot have been looked at."""
    path = tmp_path / "record.json"
    assert main(["bench", *line.split(), *more, "--output_path", str(path)]) == 0
    assert (tmp_path / "record.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(path.read_text())
    assert set(found) == RECORD
    return found


def check_rows(case, floor=True):
    for name, row in case["contenders"].items():
        assert row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"], name
        assert row["seconds"]["rounds"] >= 1
        assert not floor or row["times_floor"]["median"] > 0
    assert case["contenders"][case["baseline"]]["speed"]["median"] == 1.0


def only_missing_packages(absent):
    return all(why.startswith("ImportError") and "not installed" in why for why in absent.values())


def test_fisher_contenders_agree_with_float64_and_with_each_other(tmp_path, capsys):
    line = "fisher --config tiny --samples 4 --length 12 --rounds 1 --device cpu --kappa 0.01 --no_memory"
    found = recorded(tmp_path, line, "--impl", "auto,reference")
    (case,) = found["results"]["cases"]
    names = {"loop", "tomfisher", "tomfisher reference", *PEERS}
    assert {*case["contenders"], *case["absent"]} == {*names, "passes alone"}
    assert only_missing_packages(case["absent"])
    check_rows(case)
    assert "error" not in case["contenders"].pop("passes alone")  # it computes no Fisher
    for name, row in case["contenders"].items():
        assert row["error"] < 1e-5, name
        assert row["jaccard"] > 0.9, name
    assert found["settings"]["impl"] == "auto,reference"
    out = capsys.readouterr().out
    assert all(name in out for name in names)


def test_fisher_at_several_token_budgets(tmp_path):
    line = "fisher --config tiny --samples 4 --length 12 --rounds 1 --device cpu --kappa 0.01 --no_memory"
    found = recorded(tmp_path, line, "--tokens_per_batch", "12,auto", "--contenders", "loop,tomfisher")
    (case,) = found["results"]["cases"]
    passes = {"passes alone 12", "passes alone auto"}
    assert set(case["contenders"]) == {"loop", "tomfisher 12", "tomfisher auto", *passes}
    assert all(row["error"] < 1e-5 for name, row in case["contenders"].items() if name not in passes)


def test_fisher_in_16_bits_is_compared_with_the_float32_loop_and_two_truths(tmp_path):
    line = "fisher --config tiny --dtype bf16 --samples 2 --length 8 --rounds 1 --device cpu --kappa 0.01"
    (case,) = recorded(tmp_path, line, "--no_memory", "--contenders", "loop fp32,loop,tomfisher")["results"][
        "cases"
    ]
    assert case["baseline"] == "loop fp32"
    rows = case["contenders"]
    assert rows["loop fp32"]["error"] < 1e-5 < rows["tomfisher"]["error"] < 0.3
    assert rows["tomfisher"]["error_same_weights"] < rows["tomfisher"]["error"] * 2
    assert rows["tomfisher"]["error"] <= rows["loop"]["error"] * 1.5


@pytest.mark.slow
def test_fisher_memory_is_taken_in_a_process_of_its_own(monkeypatch):
    args = arguments("fisher --config tiny --samples 2 --length 8 --device cpu --dtype fp32")
    assert bench_fisher.peak_in_fresh_process("tomfisher", args, 2) > 50 << 20
    failed = subprocess.CompletedProcess([], 2, stdout="", stderr="no such model")
    monkeypatch.setattr(bench_fisher.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="memory of loop failed: no such model"):
        bench_fisher.peak_in_fresh_process("loop", args, 2)


def test_memory_of_an_unknown_contender_is_refused(capsys):
    line = "fisher --config tiny --samples 2 --length 8 --device cpu --memory_of nobody"
    assert main(["bench", *line.split()]) == 2
    assert "memory_of must be one of loop, tomfisher" in capsys.readouterr().err


def test_error_and_overlap_can_see_a_difference():
    truth = {"w": torch.arange(100.0).view(10, 10)}
    other = {"w": truth["w"].flip(0)}
    assert bench_fisher.error_of(truth, truth) == 0.0 and bench_fisher.error_of(
        other, truth
    ) == pytest.approx(90 / 99)
    assert bench_fisher.overlap(truth, truth, 0.1) == 1.0 and bench_fisher.overlap(other, truth, 0.1) == 0.0


def test_a_wrong_fisher_is_no_contender():
    accuracy = {"loop": {"error": 0.0}, "opacus": {"error": 0.02}, "vmap": {"error": float("nan")}}
    wrong = bench_fisher.wrong_results(accuracy, 0.01)
    assert set(wrong) == {"opacus", "vmap"} and "relative error 2.0e-02" in wrong["opacus"]
    with pytest.raises(RuntimeError, match="tomfisher cpp: a wrong result"):
        bench_fisher.wrong_results({"tomfisher cpp": {"error": 0.02}}, 0.01)


def test_a_pass_is_judged_on_the_weights_that_it_was_given():
    rounded = {"error": 0.02, "error_same_weights": 0.005}
    assert not bench_fisher.wrong_results({"tomfisher": rounded, "loop": rounded}, 0.01)
    with pytest.raises(RuntimeError, match="loop fp32: a wrong result"):
        bench_fisher.wrong_results({"loop fp32": rounded}, 0.01)


def test_unknown_contenders_are_refused(capsys):
    line = "fisher --config tiny --samples 2 --length 8 --device cpu --contenders loop,torch"
    assert main(["bench", *line.split()]) == 2
    assert "loop, tomfisher, backpack" in capsys.readouterr().err


@pytest.mark.skipif(not has_onednn(), reason="PyTorch was built without oneDNN")
def test_linear_layers_are_multiplied_right_both_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_linear, "_MOST_WEIGHTS", 3)
    cases = recorded(tmp_path, "linear --model tiny --tokens 5,16 --rounds 1")["results"]["cases"]
    assert len(cases) == 5 * 2 * 2  # four shapes and the head, two numbers of tokens, two directions
    for case in cases:
        check_rows(case)
        assert set(case["contenders"]) == {"PyTorch", "oneDNN"}
        assert all(0 < row["error"] < 1e-5 for row in case["contenders"].values())


def test_ways_of_multiple_choice_agree_with_float64(tmp_path, capsys):
    line = "choice --model testbed-llama --dtype fp32 --questions 12 --batch_size 5 --rounds 1 --device cpu"
    found = recorded(tmp_path, line)
    (case,) = found["results"]["cases"]
    check_rows(case)
    assert list(case["contenders"]) == [
        "one answer at a time",
        "every answer, padded batches",
        "distinct rows",
        "shared, by steps",
        "shared, packed",
    ]
    assert all(0 < row["error"] < 1e-4 for row in case["contenders"].values())
    assert found["settings"]["task"] == "testbed" and "x floor" in capsys.readouterr().out


def test_a_wrong_way_of_multiple_choice_is_not_timed(monkeypatch):
    loaded = load_model("testbed-llama", dtype="fp32", device="cpu")
    call = (loaded.model, loaded.tokenizer, tasks.load("testbed", n=4, split="evaluation"), 3)
    assert max(bench_choice.check(*call).values()) < 1e-4
    right = bench_choice._ours
    monkeypatch.setattr(
        bench_choice, "_ours", lambda *args, **kwargs: [[x + 0.01 for x in s] for s in right(*args, **kwargs)]
    )
    with pytest.raises(RuntimeError, match="distinct rows is wrong"):
        bench_choice.check(*call)


@pytest.mark.parametrize(
    ("model", "missing"), [("mpt", ["shared, packed"]), ("mamba", ["shared, by steps", "shared, packed"])]
)
def test_ways_that_a_model_does_not_take_are_named(tmp_path, model, missing):
    line = (
        f"choice --model testbed2-{model} --dtype fp32 --questions 2 --batch_size 5 --rounds 1 --device cpu"
    )
    (case,) = recorded(tmp_path, line)["results"]["cases"]
    assert list(case["absent"]) == missing and not {*missing} & {*case["contenders"]}


@pytest.mark.parametrize("words", ["--rounds 0", "--rounds -1", "--questions 0", "--batch_size x"])
def test_counts_of_a_benchmark_are_at_least_one(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "choice", *words.split()])
    assert f"{words.split()[0]}: must be a whole number, at least 1" in capsys.readouterr().err


def test_the_floor_of_multiple_choice_counts_every_beginning_once():
    class Model(torch.nn.Module):
        def get_output_embeddings(self):
            return SimpleNamespace(weight=torch.zeros(10, 3))

    spans = [((1, 2, 3), (4,)), ((1, 2, 3), (5, 6)), ((1, 7), (4,))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_choice, "select_parameters", lambda model, which: {"w": torch.zeros(4, 5)})
        # beginnings 1, 12, 123, 1235, 17; read at 123, 1235, 17
        assert bench_choice.flop(Model(), spans) == 2 * (5 * 20 + 3 * 30)


@pytest.mark.parametrize("tokens", ["0", "x", "", "8,,8"])
def test_linear_refuses_what_is_no_number_of_tokens(tokens, capsys):
    assert main(["bench", "linear", "--model", "tiny", "--tokens", tokens]) == 2
    assert "--tokens must be numbers above 0" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_squared_gradient_contenders_are_right(tmp_path, dtype):
    line = "squared_gradient --model tiny --batches 3x16,4~10 --rounds 1 --device cpu --dtype"
    cases = recorded(tmp_path, line, dtype)["results"]["cases"]
    assert len(cases) == 8  # four shapes, two batches
    ways = {
        "mm per sample",
        "bmm, square, sum",
        "BackPACK einsum",
        "Opacus",
        "tomfisher cpp",
        "tomfisher reference",
    }
    for case in cases:
        assert {*case["contenders"], *case["absent"]} == {*ways, "mm of all tokens"}
        check_rows(case)
        rows = case["contenders"]
        assert rows["tomfisher reference"]["error"] < (1e-5 if dtype == "fp32" else 0.01)
        assert "error" not in rows["mm of all tokens"]  # an upper bound, no Fisher
        assert rows["mm of all tokens"]["percent_of_mm"] == pytest.approx(100)


def test_a_wrong_squared_gradient_is_no_contender(monkeypatch):
    def per_token(F, Y, X, offsets):
        F.add_(Y.square().T @ X.square())

    problem = bench_squared_gradient.Problem("p", 8, 8, (4, 5))
    monkeypatch.setattr(bench_squared_gradient, "per_sample", per_token)
    case = bench_squared_gradient.measure(problem, torch.float32, torch.device("cpu"), 1, 1e9)
    assert "is wrong" in case["absent"]["mm per sample"]
    monkeypatch.setattr(bench_squared_gradient, "squared_gradient_", lambda F, **_: F.add_(1.0))
    with pytest.raises(RuntimeError, match="tomfisher cpp is wrong"):
        bench_squared_gradient.measure(problem, torch.float32, torch.device("cpu"), 1, 1e9)


def test_batches_are_spelled_out():
    assert bench_squared_gradient.lengths_of("3x16") == (16, 16, 16)
    ragged = bench_squared_gradient.lengths_of("100~100")
    assert len(ragged) == 100 and len(set(ragged)) > 50 and sum(ragged) / 100 == pytest.approx(100, abs=1)
    with pytest.raises(ValueError, match="8x128"):
        bench_squared_gradient.lengths_of("8*128")


def test_masked_fill_contenders_write_the_same(tmp_path):
    line = "masked_fill --model tiny --kappa 0.01 --rounds 1 --device cpu --dtype"
    for dtype in ("fp32", "bf16"):
        cases = recorded(tmp_path, line, dtype)["results"]["cases"]
        assert [case["phase"] for case in cases] == ["first fill", "later fill", "undo"]
        for case in cases:
            assert {"read all weights", "tomfisher cpp", "tomfisher reference", "index loop"} <= {
                *case["contenders"], *case["absent"]
            }  # fmt: skip
            check_rows(case)
            assert case["masked"] > 0
        assert "copy all weights back" in cases[2]["contenders"]


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("boolean_mask", lambda model: [flat.zero_() for flat in model.flats], "boolean mask writes"),
        ("undo_loop", lambda model: None, "index loop does not restore"),
    ],
)
def test_a_wrong_fill_or_undo_stops_the_benchmark(monkeypatch, name, wrong, said):
    weights = bench_masked_fill.make_weights("tiny", torch.float32, torch.device("cpu"))
    monkeypatch.setattr(bench_masked_fill, name, wrong)
    with pytest.raises(RuntimeError, match=said):
        list(bench_masked_fill.measure("tiny", weights, 0.1, torch.device("cpu"), 1))


def test_masked_fill_leaves_the_weights_as_they_were():
    weights = bench_masked_fill.make_weights("tiny", torch.bfloat16, torch.device("cpu"))
    before = [w.clone() for w in weights]
    list(bench_masked_fill.measure("tiny", weights, 0.1, torch.device("cpu"), 1))
    assert all(
        torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(before, weights, strict=True)
    )


def test_topk_in_memory_and_from_a_file(tmp_path):
    line = f"topk --quick --rounds 1 --kappa 1e-5 0.01 --scratch {tmp_path}"
    cases = recorded(tmp_path, line, "--distributions", "fisher,equal,sorted")["results"]["cases"]
    in_memory, in_file = cases[:6], cases[6:]
    names = {
        "read sum",
        "tomfisher cpp",
        "tomfisher reference",
        "torch.topk",
        "torch.kthvalue",
        "numpy.partition",
    }
    for case in in_memory:
        assert {*case["contenders"], *case["absent"]} == {*names, "std::nth_element"}
        check_rows(case)
    assert [case["k"] for case in in_memory] == [1, 200] * 3
    assert [case["name"].split(", ")[2] for case in in_file] == ["cold", "warm"] * 2
    assert "read file" in in_file[0]["contenders"] and "torch.topk" in in_file[1]["contenders"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["record.json", "record.png"]  # the file is gone


def test_a_wrong_topk_is_no_contender(monkeypatch):
    values = torch.rand(1000)
    args = arguments("topk --rounds 1")
    monkeypatch.setattr(bench_topk, "kth_largest", lambda values, k: 2.0)
    case = bench_topk.in_memory("x", values, 0.01, args)
    assert "a wrong result" in case["absent"]["std::nth_element"]
    monkeypatch.setattr(
        bench_topk, "topk", lambda values, k, impl: bench_topk.TopK(values[:k], torch.arange(k), values[k])
    )
    with pytest.raises(RuntimeError, match="a wrong result"):
        bench_topk.in_memory("x", values, 0.01, args)


def test_topk_on_a_gpu_checks_results_and_times_all_contenders(monkeypatch):
    """The logic on CPU tensors, with the reference in place of the kernels."""
    monkeypatch.setattr(bench_topk_gpu, "topk", lambda values, k, impl: ops.topk(values, k, impl="reference"))
    monkeypatch.setattr(
        bench_topk_gpu, "topk_across", lambda parts, k, impl: ops.topk_across(parts, k, impl="reference")
    )
    args = arguments("topk_gpu --rounds 1")
    for values in (torch.rand(5000), torch.ones(5000)):
        case = bench_topk_gpu.measure("x", values, 0.01, args)
        assert len(case["contenders"]) == 4 and not case["absent"]
        check_rows(case)
    monkeypatch.setattr(bench_topk_gpu, "topk", lambda values, k, impl: ops.topk(-values, k))
    with pytest.raises(RuntimeError, match="topk is wrong for n = 5000"):
        bench_topk_gpu.measure("x", torch.rand(5000), 0.01, args)


def test_peers_that_do_not_fit_are_said(monkeypatch):
    monkeypatch.setattr(bench_topk.memory, "available_bytes", lambda: 10_000)
    case = bench_topk.in_memory("x", torch.rand(1000), 0.01, arguments("topk --rounds 1"))
    assert case["absent"]["torch.topk"].startswith("MemoryError: needs") and case["baseline"] is None
    assert "numpy.partition" in case["contenders"]


def test_no_room_for_the_file_is_said(monkeypatch, tmp_path):
    args = arguments(f"topk --scratch {tmp_path}")
    (case,) = bench_topk.stored("uniform", 10**15, None, args)
    assert "no room" in case["absent"]["tomfisher cpp"] and not case["contenders"]
    assert "not run" in bench_topk.report({"results": {"cases": [case]}})


def test_growth_fits_every_axis(tmp_path, capsys):
    line = "growth --quick --rounds 1"
    axes = recorded(tmp_path, line)["results"]["axes"]
    assert [len(axis["points"]) for axis in axes] == [2] * 5
    assert all(point["seconds"]["median"] > 0 for axis in axes for point in axis["points"])
    assert [axis["x"] for axis in axes] == [
        "samples",
        "tokens per sample",
        "decoder weights",
        "values",
        "values",
    ]
    assert "2 threads" in capsys.readouterr().out


def test_fits_find_the_law():
    assert bench_growth.exponent([(1, 3.0), (10, 300.0), (100, 30000.0)]) == pytest.approx(2.0)
    assert bench_growth.line([(1, 7.0), (2, 9.0), (10, 25.0)]) == pytest.approx((5.0, 2.0))


def test_growth_refuses_an_unknown_axis(capsys):
    assert main(["bench", "growth", "--quick", "--axes", "topk,width"]) == 2
    assert "samples, length, parameters, topk" in capsys.readouterr().err


def test_streamed_and_resident_passes_of_a_written_shape(tmp_path, capsys):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    line = "scale --shape tiny --layers 1 --dtype fp32 --samples 2 3 --tokens 8 --rounds 1 --scratch"
    found = recorded(tmp_path, line, str(scratch))
    cases = found["results"]["cases"]
    assert [(case["slice"], case["layers"], case["of_layers"], case["samples"]) for case in cases] == [
        (True, 1, 2, 2),
        (True, 1, 2, 3),
    ]
    for case in cases:
        assert case["same_bits"] and set(case["ways"]) == {"streamed", "resident"}
        assert case["ways"]["streamed"]["written"]["F"] == case["fisher_bytes"]
        assert case["ratios"]["F_written_over_F"] == 1.0 and case["ratios"]["read_over_file"] > 1
        assert 0 < case["ways"]["streamed"]["hidden_bytes"] <= case["said_hidden_bytes"]
    assert {(curve["x"], curve["way"]) for curve in found["results"]["growth"]} == {
        ("samples", "streamed"),
        ("samples", "resident"),
    }
    assert list(scratch.iterdir()) == []
    out = capsys.readouterr()
    assert "first 1 of 2 layers" in out.out and "GB of disk" in out.err


def test_a_killed_streamed_pass_ends_with_the_same_bytes(tmp_path):
    line = f"scale --shape tiny --samples 2 --tokens 8 --kills 3 --scratch {tmp_path}"
    result = bench_scale.run(arguments(line))
    (case,) = result["results"]["cases"]
    assert case["same_bytes"] and case["kills"] >= 3 and case["layers_lost"] <= 1
    assert sum(case["phases"].values()) == case["kills"] and bench_scale.exit_code(result) == 0
    case["same_bytes"] = False
    assert bench_scale.exit_code(result) == 1 and "OTHER BYTES" in bench_scale.report(result)


def test_a_shape_that_the_disk_has_no_room_for_is_refused_before_the_work(tmp_path, monkeypatch):
    usage = SimpleNamespace(free=10**9)
    monkeypatch.setattr(bench_scale.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(
        OSError, match=r"llama3-8b \(32 of 32 layers\) takes .* GB of disk .*; 1.0 GB are free"
    ):
        bench_scale.run(arguments(f"scale --scratch {tmp_path}"))
    assert list(tmp_path.iterdir()) == []
